package vllm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// probeLimit is the most bytes of a probe's answer.
const probeLimit = 16 << 20

// version asks which engine this is.
func (c *client) version(ctx context.Context) (string, error) {
	data, err := c.do(ctx, http.MethodGet, "/version", nil, probeLimit)
	if err != nil {
		return "", err
	}
	var v struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil || v.Version == "" {
		return "", &GarbageError{c.id, errors.Join(err, fmt.Errorf("no version in %.100q", data))}
	}
	return v.Version, nil
}

// model is what a server serves.
type model struct {
	ID        string `json:"id"`
	Root      string `json:"root"`
	Parent    string `json:"parent"`
	MaxLength int    `json:"max_model_len"`
}

// models lists what the server serves, base models and adapters.
func (c *client) models(ctx context.Context) ([]model, error) {
	data, err := c.do(ctx, http.MethodGet, "/v1/models", nil, probeLimit)
	if err != nil {
		return nil, err
	}
	var list struct {
		Data []model `json:"data"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, &GarbageError{c.id, err}
	}
	return list.Data, nil
}

// baseModel finds the served model called want, or the first base model if
// want is empty.
func (c *client) baseModel(ctx context.Context, want string) (model, error) {
	list, err := c.models(ctx)
	if err != nil {
		return model{}, err
	}
	var names []string
	for _, m := range list {
		if m.ID == want || want == "" && m.Parent == "" && m.ID != "" {
			return m, nil
		}
		names = append(names, m.ID)
	}
	return model{}, fmt.Errorf("server %s: model %q is not served, only %q", c.id, want, names)
}

// health fails unless the server says that it is well. That a server says so
// proves little: it does while paused, sleeping or hung.
func (c *client) health(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodGet, "/health", nil, probeLimit)
	return err
}

// paused asks whether the scheduler is paused. Servers without development
// routes do not know; known is false then.
func (c *client) paused(ctx context.Context) (paused, known bool, err error) {
	data, err := c.do(ctx, http.MethodGet, "/is_paused", nil, probeLimit)
	var status *StatusError
	if errors.As(err, &status) && status.Status == http.StatusNotFound {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	var answer struct {
		Paused *bool `json:"is_paused"`
	}
	if err := json.Unmarshal(data, &answer); err != nil || answer.Paused == nil {
		return false, false, &GarbageError{c.id, errors.Join(err, fmt.Errorf("no is_paused in %.100q", data))}
	}
	return *answer.Paused, true, nil
}

// metrics is what we read of a server's Prometheus page.
type metrics struct {
	progress float64 // rises whenever the engine does work
	tokens   float64 // generated so far
	running  float64 // traces being sampled
	known    bool    // a progress counter was there
	start    float64 // start of the process, seconds since 1970; 0 when unknown
}

// metrics reads the page of counters.
func (c *client) metrics(ctx context.Context) (metrics, error) {
	data, err := c.do(ctx, http.MethodGet, "/metrics", nil, probeLimit)
	if err != nil {
		return metrics{}, err
	}
	return parseMetrics(data), nil
}

const generatedTokens = "vllm:generation_tokens_total"

// progressCounters rise when a server prefills or decodes. Their sum over all
// engines of a server is its progress.
var progressCounters = map[string]bool{
	generatedTokens: true, "vllm:prompt_tokens_total": true, "vllm:iteration_tokens_total_count": true,
}

// parseMetrics reads Prometheus' text format. Lines that it cannot read are
// passed over: a page is never a reason to call a server broken.
func parseMetrics(data []byte) metrics {
	var m metrics
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name := line[:strings.IndexAny(line+" ", "{ ")]
		rest := line[len(name):]
		if strings.HasPrefix(rest, "{") {
			rest = rest[strings.LastIndexByte(rest, '}')+1:]
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		v, err := strconv.ParseFloat(fields[0], 64)
		if err != nil || v != v {
			continue
		}
		switch {
		case progressCounters[name]:
			m.progress += v
			m.known = true
			if name == generatedTokens {
				m.tokens += v
			}
		case name == "vllm:num_requests_running":
			m.running += v
		case name == "process_start_time_seconds":
			m.start = v
		}
	}
	return m
}
