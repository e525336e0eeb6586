package vllm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/uadt-train/uadt-train/rollout"
)

// reloadError says at which point a change of weights failed.
type reloadError struct {
	// broken says that the reload itself was begun: the server's weights are in
	// an unknown state, and stock vLLM dies at the next request. It must be
	// restarted.
	broken bool
	err    error
}

func (e *reloadError) Error() string {
	if e.broken {
		return fmt.Sprintf("%v (the server must be restarted)", e.err)
	}
	return e.err.Error()
}

func (e *reloadError) Unwrap() error { return e.err }

// reload brings the weights in a directory live: pause, load, drop every cache,
// resume. The server must have no jobs. Pausing drops the prefix cache and the
// cache of encoded images; without that, the old weights answer from it, and
// stock vLLM dies at the next image it has seen before. They are dropped again
// after the load, because requests that others sent meanwhile may have filled
// them. A server that reports the digest of what it loaded, as ours does and
// stock vLLM does not, must report the offered one.
func (c *client) reload(ctx context.Context, offer rollout.Offer) error {
	if _, err := c.post(ctx, "/pause?mode=wait&clear_cache=true", nil); err != nil {
		return &reloadError{false, err}
	}
	body, err := json.Marshal(map[string]any{
		"method": "reload_weights", "kwargs": map[string]any{"weights_path": offer.Path},
	})
	if err != nil {
		return &reloadError{false, err}
	}
	data, err := c.post(ctx, "/collective_rpc", body)
	if err != nil {
		return &reloadError{true, err}
	}
	loaded, err := parseResults(data)
	if err != nil {
		return &reloadError{true, &GarbageError{c.id, err}}
	}
	if want := offer.Policy.Digest; loaded != "" && want != "" && loaded != want {
		return &reloadError{true, &DigestError{c.id, offer.Policy, loaded}}
	}
	return c.freshen(ctx)
}

// freshen drops what the old weights left in caches, and resumes.
func (c *client) freshen(ctx context.Context) error {
	for _, route := range []string{"/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/resume"} {
		if _, err := c.post(ctx, route, nil); err != nil {
			return &reloadError{true, err}
		}
	}
	return nil
}

func (c *client) post(ctx context.Context, route string, body []byte) ([]byte, error) {
	return c.do(ctx, http.MethodPost, route, body, probeLimit)
}

// parseResults reads the answer of collective_rpc: one null for each worker, and
// on some servers the digest of the weights that were loaded.
func parseResults(data []byte) (digest string, err error) {
	var answer struct {
		Results []json.RawMessage `json:"results"`
		Digest  string            `json:"weights_digest"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return "", err
	}
	if len(answer.Results) == 0 {
		return "", errors.New("reload_weights was answered by no worker")
	}
	return answer.Digest, nil
}

// canary asks for one token under policy and checks the answer: proof that the
// server computes with the weights it has, which /health is not.
func (c *client) canary(ctx context.Context, model string, policy rollout.Policy) error {
	job := rollout.Job{
		ID: "canary", Policy: policy,
		Question: rollout.Question{
			ID:       "canary",
			Messages: []rollout.Message{{Role: "user", Parts: []rollout.Part{{Text: "Is this an eye?"}}}},
		},
		Sampling: rollout.Sampling{Traces: 1, TopP: 1, MaxTokens: 1},
	}
	body, err := buildBody(ctx, c.options, model, job, "")
	if err != nil {
		return err
	}
	group, err := c.sample(ctx, body, job)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	group.PolicySent, group.PolicyReceived = policy, policy
	if err := group.Check(job); err != nil {
		return fmt.Errorf("server %s: canary: %w", c.id, err)
	}
	return nil
}
