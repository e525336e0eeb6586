package serve

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net/http"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// readBody reads a request body within the limit.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.options.MaxBody))
	if err != nil {
		return nil, decodeError(err)
	}
	return raw, nil
}

// chat answers POST /v1/chat/completions.
func (s *Server) chat(w http.ResponseWriter, r *http.Request) error {
	raw, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	request, err := parseChat(raw)
	if err != nil {
		return err
	}
	j, err := s.newJob(r, request)
	if err != nil {
		return err
	}
	if or(request.Stream, false) {
		return j.stream(w, r)
	}
	work := j.engineRequest()
	if len(request.Stop) > 0 {
		work.Watch = func(i int, c *qwenvl.Choice) bool {
			// An end token is not looked into.
			return c.Finish != qwenvl.FinishStop && j.texts[i].feed(c.Tokens)
		}
	}
	result, err := s.engine.Generate(r.Context(), work)
	if err != nil {
		return engineError(err)
	}
	writeRaw(w, http.StatusOK, j.response(&result))
	return nil
}

// newJob checks a request and prepares its prompt.
func (s *Server) newJob(r *http.Request, request *chatRequest) (*job, error) {
	if err := s.checkModel(request.Model); err != nil {
		return nil, err
	}
	p, err := s.buildPrompt(request.Messages, or(request.GenerationPrompt, true), request.Processor)
	if err != nil {
		return nil, err
	}
	n, err := s.choices(request)
	if err != nil {
		return nil, err
	}
	sampling, err := s.sampling(request, len(p.tokens))
	if err != nil {
		return nil, err
	}
	if request.CacheSalt != nil && *request.CacheSalt == "" {
		return nil, badRequest("cache_salt", "Parameter 'cache_salt' must be a non-empty string if provided.")
	}
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		id = or(request.RequestID, "")
	}
	if id == "" {
		id = randomID()
	}
	j := &job{server: s, request: request, id: "chatcmpl-" + id, created: s.options.Now().Unix(),
		prompt: p, sampling: sampling, n: n}
	for range n {
		j.texts = append(j.texts, j.newText())
	}
	return j, nil
}

func (j *job) engineRequest() qwenvl.Request {
	return qwenvl.Request{Prompt: j.prompt.tokens, Images: j.prompt.images, Choices: j.n, Sampling: j.sampling,
		Salt: or(j.request.CacheSalt, "")}
}

func (s *Server) checkModel(name *string) error {
	if name != nil && *name != s.options.Name {
		return &apiError{http.StatusNotFound, kindNotFound, "model", "The model `" + *name + "` does not exist."}
	}
	return nil
}

// engineError turns an error of the engine into an answer. Errors of the
// request's content are the client's; what remains is ours.
func engineError(err error) error {
	if errors.Is(err, qwenvl.ErrPrompt) || errors.Is(err, qwenvl.ErrSampling) {
		return badRequest("", "%v", err)
	}
	return err
}

// randomID names a request that brings no name: 16 hex digits.
func randomID() string {
	var raw [8]byte
	// crypto/rand.Read never fails: it ends the program instead.
	_, _ = rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}
