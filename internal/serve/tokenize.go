package serve

import (
	"encoding/json"
	"net/http"
)

// tokenizeRequest is the body of POST /tokenize: a prompt or messages.
type tokenizeRequest struct {
	Model            *string          `json:"model"`
	Prompt           *string          `json:"prompt"`
	Messages         []chatMessage    `json:"messages"`
	GenerationPrompt *bool            `json:"add_generation_prompt"`
	TokenStrs        *bool            `json:"return_token_strs"`
	Processor        processorOptions `json:"mm_processor_kwargs"`
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) error {
	raw, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	var request tokenizeRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return decodeError(err)
	}
	if err := s.checkModel(request.Model); err != nil {
		return err
	}
	var ids []int32
	switch {
	case request.Prompt != nil:
		ids = s.tokens.Encode(*request.Prompt)
	case request.Messages != nil:
		p, err := s.buildPrompt(request.Messages, or(request.GenerationPrompt, true), request.Processor)
		if err != nil {
			return err
		}
		ids = p.tokens
	default:
		return badShape("body", "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'prompt'), 'msg': 'Field required'}")
	}
	if ids == nil {
		ids = []int32{}
	}
	var spelled any
	if or(request.TokenStrs, false) {
		names := make([]string, len(ids))
		for i, id := range ids {
			names[i], _ = s.tokens.Token(id) // an id that was just encoded has a spelling
		}
		spelled = names
	}
	writeJSON(w, http.StatusOK, map[string]any{"count": len(ids), "max_model_len": s.engine.MaxLength(),
		"tokens": ids, "token_strs": spelled})
	return nil
}

func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) error {
	raw, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	var request struct {
		Model  *string `json:"model"`
		Tokens []int32 `json:"tokens"`
	}
	if err := json.Unmarshal(raw, &request); err != nil {
		return decodeError(err)
	}
	if err := s.checkModel(request.Model); err != nil {
		return err
	}
	if request.Tokens == nil {
		return badShape("body.tokens", "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'tokens'), 'msg': 'Field required'}")
	}
	for _, id := range request.Tokens {
		if id < 0 {
			return badShape("body.tokens", "1 validation error:\n  {'type': 'greater_than_equal', 'loc': ('body', 'tokens'), 'input': %d}", id)
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"prompt": s.tokens.Decode(request.Tokens, false)})
	return nil
}
