package judge

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

// VerdictError says that a reply holds no verdict.
type VerdictError struct {
	Reply string
	Err   error
}

// Error implements error.
func (e *VerdictError) Error() string {
	return fmt.Sprintf("no verdict in the reply %q: %v", e.Reply, e.Err)
}

// Unwrap returns the cause.
func (e *VerdictError) Unwrap() error { return e.Err }

// parseReply reads the verdict out of a chat completion.
func parseReply(data []byte) (float64, error) {
	var reply struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(data, &reply); err != nil {
		return 0, &VerdictError{head(string(data)), err}
	}
	if len(reply.Choices) != 1 {
		return 0, &VerdictError{head(string(data)), fmt.Errorf("%d choices, want 1", len(reply.Choices))}
	}
	return parseVerdict(reply.Choices[0].Message.Content)
}

// parseVerdict reads the last {"score": x} of a text; models like to put it in
// a code fence or to think aloud before it.
func parseVerdict(text string) (float64, error) {
	start := strings.LastIndexByte(text, '{')
	if start < 0 {
		return 0, &VerdictError{head(text), fmt.Errorf("no JSON object")}
	}
	end := strings.IndexByte(text[start:], '}')
	if end < 0 {
		return 0, &VerdictError{head(text), fmt.Errorf("the JSON object is cut off")}
	}
	var verdict struct {
		Score *float64 `json:"score"`
	}
	if err := json.Unmarshal([]byte(text[start:start+end+1]), &verdict); err != nil {
		return 0, &VerdictError{head(text), err}
	}
	if verdict.Score == nil || math.IsNaN(*verdict.Score) || *verdict.Score < 0 || *verdict.Score > 1 {
		return 0, &VerdictError{head(text), fmt.Errorf("score is missing or outside [0, 1]")}
	}
	return *verdict.Score, nil
}
