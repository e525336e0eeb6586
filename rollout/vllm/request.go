package vllm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/uadt-train/uadt-train/rollout"
)

// bannedBias is the logit bias of a token that must never be sampled, the
// lowest that the API takes. It leaves a probability of e^-100 times what it
// was: below 1e-43, which float32 softmax rounds to nothing beside any other.
const bannedBias = -100

// chatRequest is the body of a chat completion. No field that decides what is
// sampled is ever left out, so that a server's generation_config.json has no
// say.
type chatRequest struct {
	Model             string         `json:"model"`
	Messages          []chatMessage  `json:"messages"`
	N                 int            `json:"n"`
	Seed              int64          `json:"seed"`
	Temperature       float64        `json:"temperature"`
	TopP              float64        `json:"top_p"`
	TopK              int            `json:"top_k"`
	MinP              float64        `json:"min_p"`
	RepetitionPenalty float64        `json:"repetition_penalty"`
	PresencePenalty   float64        `json:"presence_penalty"`
	FrequencyPenalty  float64        `json:"frequency_penalty"`
	MaxTokens         int            `json:"max_completion_tokens"`
	MinTokens         int            `json:"min_tokens"`
	Stop              []string       `json:"stop"`
	StopTokenIDs      []int32        `json:"stop_token_ids"`
	IgnoreEOS         bool           `json:"ignore_eos"`
	LogitBias         map[string]int `json:"logit_bias,omitempty"`
	Logprobs          bool           `json:"logprobs"`
	TopLogprobs       int            `json:"top_logprobs"`
	ReturnTokenIDs    bool           `json:"return_token_ids"`
	SkipSpecial       bool           `json:"skip_special_tokens"`
	GenerationPrompt  bool           `json:"add_generation_prompt"`
	CacheSalt         string         `json:"cache_salt"`
	RequestID         string         `json:"request_id,omitempty"`
	Processor         map[string]int `json:"mm_processor_kwargs,omitempty"`
	Stream            bool           `json:"stream"`
}

type chatMessage struct {
	Role    string `json:"role"`
	Content any    `json:"content"` // a string, or []chatPart when there is an image
}

type chatPart struct {
	Type  string    `json:"type"`
	Text  *string   `json:"text,omitempty"`
	Image *imageURL `json:"image_url,omitempty"`
	// UUID is the key under which a server caches what it made of an image; it
	// never looks at the bytes, so it must be a hash of them.
	UUID string `json:"uuid,omitempty"`
}

type imageURL struct {
	URL string `json:"url"`
}

// errNoMessages refuses a question that shows the policy nothing.
var errNoMessages = errors.New("question has no messages")

// buildBody renders the request that asks model for the traces of job.
func buildBody(ctx context.Context, o Options, model string, job rollout.Job, requestID string) ([]byte, error) {
	if len(job.Question.Messages) == 0 {
		return nil, errNoMessages
	}
	s := job.Sampling
	r := chatRequest{
		Model: model, N: s.Traces, Seed: s.Seed,
		Temperature: s.Temperature, TopP: s.TopP, TopK: s.TopK, MinP: s.MinP, RepetitionPenalty: 1,
		MaxTokens: s.MaxTokens, Stop: []string{}, StopTokenIDs: []int32{},
		Logprobs: true, ReturnTokenIDs: true, SkipSpecial: true, GenerationPrompt: true,
		CacheSalt: job.Policy.String(), RequestID: requestID,
	}
	if s.TopLogprobs > 0 {
		// The chat route returns as many entries as were asked for with the sampled
		// token first, so a sampled token outside the k likeliest displaces the
		// k-th. One more makes sure that the k largest are all there.
		r.TopLogprobs = s.TopLogprobs + 1
	}
	if len(s.Banned) > 0 {
		r.LogitBias = make(map[string]int, len(s.Banned))
		for _, id := range s.Banned {
			r.LogitBias[strconv.Itoa(int(id))] = bannedBias
		}
	}
	images := 0
	for _, m := range job.Question.Messages {
		message, n, err := buildMessage(ctx, o.Images, m)
		if err != nil {
			return nil, err
		}
		images += n
		r.Messages = append(r.Messages, message)
	}
	if images > 0 && o.MaxPixels > 0 {
		r.Processor = map[string]int{"max_pixels": o.MaxPixels}
	}
	return json.Marshal(r)
}

// buildMessage renders one message and counts its images. A message of text
// alone is sent as a string, which every chat template takes.
func buildMessage(ctx context.Context, images Images, m rollout.Message) (chatMessage, int, error) {
	if len(m.Parts) == 1 && m.Parts[0].Image == nil {
		return chatMessage{Role: m.Role, Content: m.Parts[0].Text}, 0, nil
	}
	parts := make([]chatPart, 0, len(m.Parts))
	count := 0
	for _, part := range m.Parts {
		if part.Image == nil {
			parts = append(parts, chatPart{Type: "text", Text: &part.Text})
			continue
		}
		if images == nil {
			return chatMessage{}, 0, fmt.Errorf("image %s: the fleet has no source of images", part.Image.Digest)
		}
		data, mediaType, err := images.Image(ctx, part.Image.Digest)
		if err != nil {
			return chatMessage{}, 0, fmt.Errorf("image %s: %w", part.Image.Digest, err)
		}
		if mediaType == "" {
			mediaType = part.Image.MediaType
		}
		url := "data:" + mediaType + ";base64," + base64.StdEncoding.EncodeToString(data)
		parts = append(parts, chatPart{Type: "image_url", Image: &imageURL{url}, UUID: part.Image.Digest})
		count++
	}
	return chatMessage{Role: m.Role, Content: parts}, count, nil
}
