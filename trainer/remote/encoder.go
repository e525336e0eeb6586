package remote

import (
	"context"
	"errors"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

type encodeBody struct {
	Model    string          `json:"model"`
	Messages []encodeMessage `json:"messages"`
	Response string          `json:"response"`
}

type encodeMessage struct {
	Role  string       `json:"role"`
	Parts []encodePart `json:"parts"`
}

type encodePart struct {
	Text  string `json:"text"`
	Image string `json:"image"` // digest; empty for text
}

// Encode implements trainer.Encoder through the processor of the stage's own
// model, for families that this program cannot tokenise itself.
func (t *Trainer) Encode(ctx context.Context, q rollout.Question, response string) (trainer.Encoded, error) {
	t.order.Lock()
	defer t.order.Unlock()
	encoded, err := t.encode(ctx, q, response)
	if err != nil {
		return trainer.Encoded{}, fmt.Errorf("encode %s: %w", q.ID, err)
	}
	return encoded, nil
}

func (t *Trainer) encode(ctx context.Context, q rollout.Question, response string) (trainer.Encoded, error) {
	s, err := t.begun()
	if err != nil {
		return trainer.Encoded{}, err
	}
	body := encodeBody{Model: s.model, Messages: []encodeMessage{}, Response: response}
	for _, m := range q.Messages {
		message := encodeMessage{Role: m.Role, Parts: []encodePart{}}
		for _, p := range m.Parts {
			part := encodePart{Text: p.Text}
			if p.Image != nil {
				part = encodePart{Image: p.Image.Digest}
			}
			message.Parts = append(message.Parts, part)
		}
		body.Messages = append(body.Messages, message)
	}
	answers, err := t.call(ctx, "encode", s.instance, same(body))
	if err != nil {
		return trainer.Encoded{}, err
	}
	prompt, err := answers[0].ints("prompt")
	tokens, err2 := answers[0].ints("response")
	if err := errors.Join(err, err2); err != nil {
		return trainer.Encoded{}, err
	}
	return trainer.Encoded{Prompt: prompt, Response: tokens}, nil
}
