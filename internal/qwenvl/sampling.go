package qwenvl

import (
	"errors"
	"fmt"
	"math"
)

// ErrSampling is wrapped by every error about sampling options.
var ErrSampling = errors.New("unusable sampling options")

// Sampling says how the traces of a request are drawn. The zero value with
// MaxTokens set is greedy decoding.
type Sampling struct {
	// Temperature divides the logits. 0 (and anything below 1e-5) is greedy:
	// the highest logit, the lowest id on ties, reported log-probabilities
	// unscaled. Values below 0.01 are raised to 0.01, as vLLM does.
	Temperature float64
	// TopP keeps the smallest set of tokens whose probability reaches it.
	// 0 and 1 keep all.
	TopP float64
	// TopK keeps the TopK most probable tokens, and ties with the last of them.
	// 0 and below keep all.
	TopK int
	// MinP keeps tokens with at least MinP times the highest probability.
	MinP float64
	// RepetitionPenalty divides positive and multiplies negative logits of
	// tokens of the prompt and the response so far. 0 and 1 are off.
	RepetitionPenalty float64
	// PresencePenalty is taken off the logits of tokens in the response.
	PresencePenalty float64
	// FrequencyPenalty is taken off once for each occurrence in the response.
	FrequencyPenalty float64
	// MaxTokens ends a response with "length"; at least 1.
	MaxTokens int
	// MinTokens bans the end and stop tokens until so many tokens are there.
	MinTokens int
	// Seed of choice 0; choice i draws from Seed + i. Used only when Seeded;
	// otherwise the engine numbers requests from its own seed.
	Seed   int64
	Seeded bool
	// IgnoreEOS goes on after an end token.
	IgnoreEOS bool
	// StopTokens end a response; the token stays in it.
	StopTokens []int32
	// Bias is added to the logits of single tokens.
	Bias []TokenBias
	// Banned tokens have probability 0.
	Banned []int32
	// Allowed, if not empty, are the only tokens with a probability.
	Allowed []int32
	// TopLogProbs asks for the log-probabilities of the most probable tokens at
	// each position; -1 asks for all.
	TopLogProbs int
}

// TokenBias is one entry of a logit bias.
type TokenBias struct {
	Token int32
	Add   float32
}

// Validate reports every option that is out of range, for a model with the
// given number of tokens.
func (s *Sampling) Validate(vocabulary int) error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("%w: "+format, append([]any{ErrSampling}, args...)...))
	}
	within := func(name string, value, low, high float64) {
		if !(value >= low && value <= high) {
			bad("%s is %v, want %v to %v", name, value, low, high)
		}
	}
	within("temperature", s.Temperature, 0, math.MaxFloat32)
	within("top_p", s.TopP, 0, 1)
	within("min_p", s.MinP, 0, 1)
	within("repetition_penalty", s.RepetitionPenalty, 0, math.MaxFloat32)
	within("presence_penalty", s.PresencePenalty, -2, 2)
	within("frequency_penalty", s.FrequencyPenalty, -2, 2)
	if s.MaxTokens < 1 {
		bad("max_tokens is %d, want at least 1", s.MaxTokens)
	}
	if s.MinTokens < 0 || s.MinTokens > s.MaxTokens {
		bad("min_tokens is %d, want 0 to max_tokens %d", s.MinTokens, s.MaxTokens)
	}
	if s.TopLogProbs < -1 {
		bad("top_logprobs is %d, want -1 or more", s.TopLogProbs)
	}
	for name, ids := range map[string][]int32{"stop token": s.StopTokens, "banned token": s.Banned, "allowed token": s.Allowed} {
		for _, id := range ids {
			if id < 0 || int(id) >= vocabulary {
				bad("%s %d is outside the vocabulary of %d", name, id, vocabulary)
			}
		}
	}
	for _, b := range s.Bias {
		if b.Token < 0 || int(b.Token) >= vocabulary {
			bad("biased token %d is outside the vocabulary of %d", b.Token, vocabulary)
		}
		if v := float64(b.Add); math.IsNaN(v) || math.IsInf(v, 0) {
			bad("bias of token %d is %v, want a finite number", b.Token, b.Add)
		}
	}
	return errors.Join(problems...)
}

// greedyBelow is the temperature under which vLLM takes the highest logit, and
// leastTemperature the one to which it raises smaller ones.
const (
	greedyBelow      = 1e-5
	leastTemperature = 0.01
)

func (s *Sampling) greedy() bool { return s.Temperature < greedyBelow }
