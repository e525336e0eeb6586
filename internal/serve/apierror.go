package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// apiError is an answer that is not 200, in vLLM's shape.
type apiError struct {
	status  int
	kind    string // "BadRequestError", "NotFoundError", ...
	param   string // "" is null
	message string
}

func (e *apiError) Error() string { return e.message }

// Types of errors by their names in vLLM. Validation of a body's shape answers
// "Bad Request", later checks "BadRequestError".
const (
	kindBadRequest = "BadRequestError"
	kindShape      = "Bad Request"
	kindNotFound   = "NotFoundError"
	kindInternal   = "InternalServerError"
)

func badRequest(param, format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, kindBadRequest, param, fmt.Sprintf(format, args...)}
}

// badValue is a bad request that names its parameter and value as vLLM does.
func badValue(param string, value any, format string, args ...any) *apiError {
	return badRequest(param, "%s (parameter=%s, value=%v)", fmt.Sprintf(format, args...), param, value)
}

func badShape(param, format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, kindShape, param, fmt.Sprintf(format, args...)}
}

func internalError(format string, args ...any) *apiError {
	return &apiError{http.StatusInternalServerError, kindInternal, "", fmt.Sprintf(format, args...)}
}

func (e *apiError) body() map[string]any {
	var param any
	if e.param != "" {
		param = e.param
	}
	return map[string]any{"error": map[string]any{
		"message": e.message, "type": e.kind, "param": param, "code": e.status}}
}

// decodeError turns an error of encoding/json into vLLM's answer.
func decodeError(err error) *apiError {
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &apiError{http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "",
			fmt.Sprintf("request body is larger than %d bytes", tooLarge.Limit)}
	case errors.As(err, &syntax):
		return badShape("body."+strconv.FormatInt(max(0, syntax.Offset-1), 10),
			"1 validation error:\n  {'type': 'json_invalid', 'loc': ('body', %d), 'msg': 'JSON decode error', 'ctx': {'error': '%v'}}",
			max(0, syntax.Offset-1), syntax)
	case errors.As(err, &wrong):
		field := wrong.Field
		if field == "" {
			field = "body"
		} else {
			field = "body." + field
		}
		return badShape(field, "1 validation error:\n  {'type': 'type_error', 'loc': '%s', 'msg': 'Input should be a valid %s', 'input': %s}",
			field, wrong.Type, wrong.Value)
	}
	return badShape("body", "1 validation error:\n  {'type': 'json_invalid', 'loc': ('body',), 'msg': 'JSON decode error: %v'}", err)
}

// python writes a float as Python prints it: whole numbers with ".0".
func python(x float64) string {
	text := strconv.FormatFloat(x, 'g', -1, 64)
	if !math.IsInf(x, 0) && !math.IsNaN(x) && !strings.ContainsAny(text, ".e") {
		text += ".0"
	}
	return text
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil { // a bug: every body is made of plain maps and slices
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeRaw(w, status, raw)
}

func writeRaw(w http.ResponseWriter, status int, raw []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	// A failed write means that the client has left; there is nobody to tell.
	_, _ = w.Write(raw)
}
