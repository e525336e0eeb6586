package serve

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// chatRequest is the body of POST /v1/chat/completions. Fields that are not
// here are ignored, as vLLM does. Pointers tell null or absent from zero.
type chatRequest struct {
	Messages            []chatMessage      `json:"messages"`
	Model               *string            `json:"model"`
	FrequencyPenalty    *float64           `json:"frequency_penalty"`
	PresencePenalty     *float64           `json:"presence_penalty"`
	RepetitionPenalty   *float64           `json:"repetition_penalty"`
	LogitBias           map[string]float64 `json:"logit_bias"`
	Logprobs            *bool              `json:"logprobs"`
	TopLogprobs         *int               `json:"top_logprobs"`
	MaxTokens           *int               `json:"max_tokens"`
	MaxCompletionTokens *int               `json:"max_completion_tokens"`
	MinTokens           int                `json:"min_tokens"`
	N                   *int               `json:"n"`
	Seed                *int64             `json:"seed"`
	Stop                stringList         `json:"stop"`
	StopTokenIDs        []int32            `json:"stop_token_ids"`
	IncludeStop         bool               `json:"include_stop_str_in_output"`
	IgnoreEOS           bool               `json:"ignore_eos"`
	Stream              *bool              `json:"stream"`
	StreamOptions       *streamOptions     `json:"stream_options"`
	Temperature         *float64           `json:"temperature"`
	TopP                *float64           `json:"top_p"`
	TopK                *int               `json:"top_k"`
	MinP                *float64           `json:"min_p"`
	AllowedTokenIDs     []int32            `json:"allowed_token_ids"`
	SkipSpecial         *bool              `json:"skip_special_tokens"`
	GenerationPrompt    *bool              `json:"add_generation_prompt"`
	ReturnTokenIDs      *bool              `json:"return_token_ids"`
	TokensAsIDs         *bool              `json:"return_tokens_as_token_ids"`
	CacheSalt           *string            `json:"cache_salt"`
	RequestID           *string            `json:"request_id"`
	Processor           processorOptions   `json:"mm_processor_kwargs"`
	XArgs               xargs              `json:"vllm_xargs"`

	// What this server cannot do, so that asking for it is refused.
	PromptLogprobs    json.RawMessage `json:"prompt_logprobs"`
	BadWords          []string        `json:"bad_words"`
	ResponseFormat    *formatOption   `json:"response_format"`
	StructuredOutputs json.RawMessage `json:"structured_outputs"`
	Tools             []any           `json:"tools"`
	Echo              bool            `json:"echo"`
	BeamSearch        bool            `json:"use_beam_search"`
	Continue          bool            `json:"continue_final_message"`
	ChatTemplate      *string         `json:"chat_template"`
	Priority          int64           `json:"priority"`
	Truncate          json.RawMessage `json:"truncate_prompt_tokens"`
}

type streamOptions struct {
	IncludeUsage    *bool `json:"include_usage"`
	ContinuousUsage *bool `json:"continuous_usage_stats"`
}

type formatOption struct {
	Type string `json:"type"`
}

// processorOptions are the per-request image limits, in pixels.
type processorOptions struct {
	MinPixels *int `json:"min_pixels"`
	MaxPixels *int `json:"max_pixels"`
}

// xargs are the extensions of this server. Entropy adds "token_entropies" to
// every choice: the exact entropy, in nats, of the distribution that each token
// was sampled from.
type xargs struct {
	Entropy bool `json:"entropy"`
}

// UnmarshalJSON accepts the booleans that a client may write as numbers or
// strings (vLLM's own vllm_xargs takes numbers and strings), and ignores keys
// that belong to other servers.
func (x *xargs) UnmarshalJSON(raw []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return fmt.Errorf("vllm_xargs: %w", err)
	}
	switch string(fields["entropy"]) {
	case "true", "1", `"true"`, `"1"`:
		x.Entropy = true
	}
	return nil
}

// stringList is one string or a list of them.
type stringList []string

// UnmarshalJSON implements json.Unmarshaler.
func (s *stringList) UnmarshalJSON(raw []byte) error {
	if bytes.HasPrefix(raw, []byte{'"'}) {
		var one string
		if err := json.Unmarshal(raw, &one); err != nil {
			return err
		}
		*s = stringList{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(s))
}

// chatMessage is one turn: content is a string, a list of parts, or null.
type chatMessage struct {
	Role    string      `json:"role"`
	Content chatContent `json:"content"`
}

type chatContent []chatPart

// chatPart is a piece of content. An image has a URL, a uuid, or both.
type chatPart struct {
	Type     string    `json:"type"`
	Text     *string   `json:"text"`
	ImageURL *imageURL `json:"image_url"`
	UUID     *string   `json:"uuid"`
}

// imageURL is {"url": ...}, or the URL itself.
type imageURL struct {
	URL string `json:"url"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (u *imageURL) UnmarshalJSON(raw []byte) error {
	if bytes.HasPrefix(raw, []byte{'"'}) {
		return json.Unmarshal(raw, &u.URL)
	}
	type plain imageURL
	return json.Unmarshal(raw, (*plain)(u))
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *chatContent) UnmarshalJSON(raw []byte) error {
	if bytes.HasPrefix(raw, []byte{'"'}) {
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
		*c = chatContent{{Type: "text", Text: &text}}
		return nil
	}
	return json.Unmarshal(raw, (*[]chatPart)(c))
}

// parseChat reads a chat completion request. Errors are *apiError.
func parseChat(raw []byte) (*chatRequest, error) {
	var r chatRequest
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, decodeError(err)
	}
	if r.Messages == nil {
		return nil, badShape("body.messages", "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}")
	}
	for i, m := range r.Messages {
		if m.Role == "" {
			return nil, badShape("body.messages", "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'messages', %d, 'role'), 'msg': 'Field required'}", i)
		}
	}
	if err := r.refuse(); err != nil {
		return nil, err
	}
	return &r, nil
}

// refuse names the first thing that the request asks for and this server does
// not do.
func (r *chatRequest) refuse() error {
	given := func(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }
	for _, field := range []struct {
		name  string
		asked bool
	}{
		{"prompt_logprobs", given(r.PromptLogprobs)},
		{"bad_words", len(r.BadWords) > 0},
		{"response_format", r.ResponseFormat != nil && r.ResponseFormat.Type != "" && r.ResponseFormat.Type != "text"},
		{"structured_outputs", given(r.StructuredOutputs)},
		{"tools", len(r.Tools) > 0},
		{"echo", r.Echo},
		{"use_beam_search", r.BeamSearch},
		{"continue_final_message", r.Continue},
		{"chat_template", r.ChatTemplate != nil},
		{"priority", r.Priority != 0},
		{"truncate_prompt_tokens", given(r.Truncate)},
	} {
		if field.asked {
			return badRequest(field.name, "%s is not supported by this server", field.name)
		}
	}
	return nil
}

// or returns the value behind p, or fallback for nil.
func or[T any](p *T, fallback T) T {
	if p == nil {
		return fallback
	}
	return *p
}
