package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

func (s *Server) pause(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	mode := qwenvl.PauseMode(query.Get("mode"))
	switch mode {
	case "":
		mode = qwenvl.PauseAbort
	case qwenvl.PauseAbort, qwenvl.PauseWait, qwenvl.PauseKeep:
	default:
		return badShape("query.mode",
			"1 validation error:\n  {'type': 'literal_error', 'loc': ('query', 'mode'), 'msg': \"Input should be 'abort', 'wait' or 'keep'\", 'input': '%s'}", mode)
	}
	clearCache := true
	if text := query.Get("clear_cache"); text != "" {
		var err error
		if clearCache, err = strconv.ParseBool(text); err != nil {
			return badShape("query.clear_cache",
				"1 validation error:\n  {'type': 'bool_parsing', 'loc': ('query', 'clear_cache'), 'msg': 'Input should be a valid boolean', 'input': '%s'}", text)
		}
	}
	if err := s.engine.Pause(r.Context(), mode, clearCache); err != nil {
		return err
	}
	if clearCache {
		s.images.clear()
	}
	writeJSON(w, http.StatusOK, map[string]any{"status": "paused"})
	return nil
}

func (s *Server) resume(w http.ResponseWriter, r *http.Request) error {
	if err := s.engine.Resume(r.Context()); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"status": "resumed"})
	return nil
}

func (s *Server) isPaused(w http.ResponseWriter, r *http.Request) error {
	paused, err := s.engine.Paused(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"is_paused": paused})
	return nil
}

// rpcRequest is the body of POST /collective_rpc.
type rpcRequest struct {
	Method *string `json:"method"`
	Kwargs struct {
		WeightsPath *string `json:"weights_path"`
	} `json:"kwargs"`
}

func (s *Server) collectiveRPC(w http.ResponseWriter, r *http.Request) error {
	raw, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	var request rpcRequest
	if err := json.Unmarshal(raw, &request); err != nil {
		return badShape("", "JSON decode error: %v", err)
	}
	if request.Method == nil || *request.Method == "" {
		return badShape("", "Missing 'method' in request body")
	}
	if *request.Method != "reload_weights" {
		return internalError("Call to collective_rpc method failed: Worker failed with error "+
			"''NativeWorker' object has no attribute '%s'', please check the stack trace above for the root cause", *request.Method)
	}
	dir := or(request.Kwargs.WeightsPath, s.options.Dir)
	digest, err := s.Reload(r.Context(), dir)
	if err != nil {
		return internalError("Call to collective_rpc method failed: Worker failed with error '%v'; "+
			"the old weights stay loaded and the server goes on", err)
	}
	writeJSON(w, http.StatusOK, map[string]any{"results": []any{nil}, "weights_digest": digest})
	return nil
}

// Reload replaces the weights by those of a checkpoint directory, whose
// architecture must be the same and whose tokenizer, if it has one, too. It
// drops every cache and returns the digest of the new weights. When it fails,
// the old weights stay and nothing changes.
func (s *Server) Reload(ctx context.Context, dir string) (digest string, err error) {
	s.reload.Lock()
	defer s.reload.Unlock()
	if err := s.sameTokenizer(dir); err != nil {
		return "", err
	}
	model, err := qwenvl.LoadModel(dir)
	if err != nil {
		return "", err
	}
	if err := s.engine.Swap(ctx, model); err != nil {
		return "", err
	}
	s.images.clear()
	s.options.Log.Info("weights loaded", "dir", dir, "digest", model.Digest)
	return model.Digest, nil
}

func (s *Server) sameTokenizer(dir string) error {
	path := filepath.Join(dir, tokenizer.File)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil // weights alone: the loader says if even the directory is missing
	}
	other, err := tokenizer.Open(dir)
	if err != nil {
		return err
	}
	if other.Digest() != s.tokens.Digest() {
		return fmt.Errorf("%s is not the tokenizer that this server was started with", path)
	}
	return nil
}
