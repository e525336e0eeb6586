package judge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// longestReply is the most bytes of a response that are read.
const longestReply = 1 << 20

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type chatRequest struct {
	Model       string        `json:"model"`
	Messages    []chatMessage `json:"messages"`
	Temperature float64       `json:"temperature"`
	MaxTokens   int           `json:"max_tokens"`
}

// StatusError is an answer of the endpoint that is not 200.
type StatusError struct {
	Status int
	Body   string // beginning of the body
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Body) }

// retryable says whether asking again may help: overload and server faults do,
// a refused request and an unreadable verdict at temperature 0 do not.
func retryable(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Status == http.StatusTooManyRequests || status.Status == http.StatusRequestTimeout || status.Status >= 500
	}
	var verdict *VerdictError
	return !errors.As(err, &verdict)
}

// ask sends one prompt, again after failures that may pass.
func (j *Judge) ask(ctx context.Context, text string) (float64, error) {
	body, err := json.Marshal(chatRequest{
		Model:     j.options.Model,
		Messages:  []chatMessage{{"system", system}, {"user", text}},
		MaxTokens: j.options.MaxTokens,
	})
	if err != nil {
		return 0, fmt.Errorf("judge %s: %w", j.options.URL, err)
	}
	wait := j.options.Backoff
	for try := 0; ; try++ {
		verdict, err := j.once(ctx, body)
		if err == nil {
			return verdict, nil
		}
		if ctx.Err() != nil || try >= j.options.Retries || !retryable(err) {
			return 0, fmt.Errorf("judge %s, try %d: %w", j.options.URL, try+1, err)
		}
		if err := j.options.Wait(ctx, wait); err != nil {
			return 0, fmt.Errorf("judge %s, waiting for try %d: %w", j.options.URL, try+2, err)
		}
		wait = min(2*wait, time.Minute)
	}
}

// once sends one request within the time limit of a request.
func (j *Judge) once(ctx context.Context, body []byte) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, j.options.Timeout)
	defer cancel()
	url := strings.TrimRight(j.options.URL, "/") + "/chat/completions"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	if j.options.Key != "" {
		request.Header.Set("Authorization", "Bearer "+j.options.Key)
	}
	response, err := j.options.Client.Do(request)
	if err != nil {
		return 0, err
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, longestReply))
	if err = errors.Join(err, response.Body.Close()); err != nil {
		return 0, err
	}
	if response.StatusCode != http.StatusOK {
		return 0, &StatusError{Status: response.StatusCode, Body: head(string(data))}
	}
	return parseReply(data)
}

// head cuts text for an error message.
func head(text string) string {
	const most = 200
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}
