package vllm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// client speaks to one server. It knows nothing of the fleet.
type client struct {
	id      string // the URL as configured
	base    string
	options Options
	http    *http.Client
}

func newClient(server string, options Options) *client {
	dialer := &net.Dialer{Timeout: options.ProbeTimeout}
	return &client{
		id: server, base: strings.TrimRight(server, "/"), options: options,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: dialer.DialContext,
				// Stock vLLM closes idle connections after 5 s, and Go does not send a
				// POST again when it hits one: be faster.
				IdleConnTimeout:     4 * time.Second,
				MaxIdleConnsPerHost: options.Concurrency + 4,
				TLSHandshakeTimeout: options.ProbeTimeout,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// do sends one request and returns the body of a 200 answer.
func (c *client) do(ctx context.Context, method, route string, body []byte, limit int64) ([]byte, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+route, reader)
	if err != nil {
		return nil, fmt.Errorf("server %s: %s: %w", c.id, route, err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.options.Key != "" {
		request.Header.Set("Authorization", "Bearer "+c.options.Key)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("server %s: %s: %w", c.id, route, cause(ctx, err))
	}
	data, err := readBody(response, limit)
	if err = errors.Join(err, response.Body.Close()); err != nil {
		return nil, fmt.Errorf("server %s: %s: %w", c.id, route, cause(ctx, err))
	}
	if response.StatusCode != http.StatusOK {
		return nil, &StatusError{Server: c.id, Route: route, Status: response.StatusCode, Message: message(data)}
	}
	return data, nil
}

// cause prefers why ctx ended to the plain "context canceled" that the
// transport reports.
func cause(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

// readBody reads at most limit bytes.
func readBody(response *http.Response, limit int64) ([]byte, error) {
	if response.ContentLength > limit {
		return nil, fmt.Errorf("the answer has %d bytes, the limit is %d", response.ContentLength, limit)
	}
	var buffer bytes.Buffer
	if response.ContentLength > 0 {
		buffer.Grow(int(response.ContentLength) + bytes.MinRead)
	}
	n, err := buffer.ReadFrom(io.LimitReader(response.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("the answer has more than the limit of %d bytes", limit)
	}
	return buffer.Bytes(), nil
}

// message digs a server's own words out of an error body, whichever of the
// shapes it has: {"error":{"message":..}}, {"error":".."}, {"detail":..}, text.
func message(body []byte) string {
	var shape struct {
		Error  json.RawMessage `json:"error"`
		Detail json.RawMessage `json:"detail"`
	}
	text := string(body)
	if json.Unmarshal(body, &shape) == nil {
		var inner struct {
			Message string `json:"message"`
		}
		switch {
		case json.Unmarshal(shape.Error, &inner) == nil && inner.Message != "":
			text = inner.Message
		case len(shape.Error) > 0:
			text = string(shape.Error)
		case len(shape.Detail) > 0:
			text = string(shape.Detail)
		}
	}
	const most = 500
	if len(text) > most {
		text = text[:most] + "..."
	}
	return strings.ToValidUTF8(strings.TrimSpace(text), "?")
}

// sample asks for the traces of job and checks what comes back. The returned
// group lacks what only the fleet knows: policies and times.
func (c *client) sample(ctx context.Context, body []byte, job rollout.Job) (rollout.Group, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.options.Timeout, errTimeout)
	defer cancel()
	data, err := c.do(ctx, http.MethodPost, "/v1/chat/completions", body, c.options.MaxBody)
	if err != nil {
		return rollout.Group{}, err
	}
	parsed, err := parseAnswer(data, job.Sampling)
	if err != nil {
		return rollout.Group{}, &GarbageError{c.id, err}
	}
	traces, err := parsed.traces(job.Sampling.Traces)
	if err != nil {
		return rollout.Group{}, &GarbageError{c.id, err}
	}
	return rollout.Group{
		Job: job.ID, QuestionID: job.Question.ID, PromptTokens: parsed.prompt, Traces: traces,
		Server: c.id, Seed: job.Sampling.Seed,
	}, nil
}
