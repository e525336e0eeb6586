package serve

import (
	"context"
	"errors"
	"net/http"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// version is the release of vLLM whose behaviour this server follows. The part
// after the plus tells that it is not that server.
const version = "0.25.1+uadt"

// Handler is the whole API as an http.Handler.
func (s *Server) Handler() http.Handler {
	routes := map[string]map[string]func(http.ResponseWriter, *http.Request) error{
		"/v1/chat/completions": {"POST": s.chat},
		"/v1/models":           {"GET": s.listModels},
		"/version":             {"GET": s.constant(map[string]any{"version": version})},
		"/health":              {"GET": s.empty(nil)},
		"/ping":                {"GET": s.empty(nil), "POST": s.empty(nil)},
		"/load":                {"GET": s.load},
		"/metrics":             {"GET": s.metrics},
		"/tokenize":            {"POST": s.tokenize},
		"/detokenize":          {"POST": s.detokenize},
		"/pause":               {"POST": s.pause},
		"/resume":              {"POST": s.resume},
		"/is_paused":           {"GET": s.isPaused},
		"/is_sleeping":         {"GET": s.constant(map[string]any{"is_sleeping": false})},
		"/collective_rpc":      {"POST": s.collectiveRPC},
		"/reset_prefix_cache":  {"POST": s.empty(s.engine.ResetPrefixes)},
		"/reset_mm_cache":      {"POST": s.empty(func(context.Context) error { s.images.clear(); return nil })},
		"/reset_encoder_cache": {"POST": s.empty(s.engine.ResetImages)},
		"/get_world_size":      {"GET": s.constant(map[string]any{"world_size": 1})},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		methods, ok := routes[r.URL.Path]
		if !ok {
			writeJSON(w, http.StatusNotFound, map[string]any{"detail": "Not Found"})
			return
		}
		handle, ok := methods[r.Method]
		if !ok {
			writeJSON(w, http.StatusMethodNotAllowed, map[string]any{"detail": "Method Not Allowed"})
			return
		}
		if err := handle(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// fail answers an error. Every error that is no *apiError is the server's.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the client has left
	}
	answer := asAPIError(err)
	if answer.status >= http.StatusInternalServerError {
		s.options.Log.Error("request failed", "route", r.URL.Path, "error", err)
	}
	writeJSON(w, answer.status, answer.body())
}

func asAPIError(err error) *apiError {
	var answer *apiError
	switch {
	case errors.As(err, &answer):
		return answer
	case errors.Is(err, qwenvl.ErrClosed):
		return &apiError{http.StatusServiceUnavailable, "ServiceUnavailable", "", err.Error()}
	}
	return internalError("%v", err)
}

// errorEvent is an error as the data of a server-sent event.
func errorEvent(err error) []byte {
	answer := asAPIError(err)
	b := append([]byte(`{"error":{"message":`), appendString(nil, []byte(answer.message))...)
	return append(b, `,"type":"InternalServerError","param":null,"code":500}}`...)
}

// constant answers the same JSON every time.
func (s *Server) constant(body any) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, _ *http.Request) error {
		writeJSON(w, http.StatusOK, body)
		return nil
	}
}

// empty runs f, if any, and answers 200 without a body.
func (s *Server) empty(f func(context.Context) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if f != nil {
			if err := f(r.Context()); err != nil {
				return err
			}
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
}

func (s *Server) load(w http.ResponseWriter, _ *http.Request) error {
	stats := s.engine.Stats()
	writeJSON(w, http.StatusOK, map[string]any{"server_load": stats.Running + stats.Waiting})
	return nil
}

func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) error {
	created := s.started.Unix()
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []any{map[string]any{
		"id": s.options.Name, "object": "model", "created": created, "owned_by": "vllm",
		"root": s.options.Dir, "parent": nil, "max_model_len": s.engine.MaxLength(),
		"permission": []any{map[string]any{
			"id": "modelperm-" + s.fingerprint, "object": "model_permission", "created": created,
			"allow_create_engine": false, "allow_sampling": true, "allow_logprobs": true,
			"allow_search_indices": false, "allow_view": true, "allow_fine_tuning": false,
			"organization": "*", "group": nil, "is_blocking": false,
		}},
	}}})
	return nil
}
