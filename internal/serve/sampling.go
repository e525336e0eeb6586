package serve

import (
	"math"
	"slices"
	"strconv"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// sampling turns a request's options into the engine's, with vLLM's defaults
// and its errors. promptTokens is the length of the expanded prompt.
func (s *Server) sampling(r *chatRequest, promptTokens int) (qwenvl.Sampling, error) {
	out := qwenvl.Sampling{
		Temperature:       or(r.Temperature, 1),
		TopP:              or(r.TopP, 1),
		TopK:              or(r.TopK, 0),
		MinP:              or(r.MinP, 0),
		RepetitionPenalty: or(r.RepetitionPenalty, 1),
		PresencePenalty:   or(r.PresencePenalty, 0),
		FrequencyPenalty:  or(r.FrequencyPenalty, 0),
		MinTokens:         r.MinTokens,
		Seed:              or(r.Seed, 0),
		Seeded:            r.Seed != nil,
		IgnoreEOS:         r.IgnoreEOS,
		StopTokens:        r.StopTokenIDs,
		Allowed:           r.AllowedTokenIDs,
	}
	if err := checkRanges(&out); err != nil {
		return out, err
	}
	if err := s.lengths(r, &out, promptTokens); err != nil {
		return out, err
	}
	if err := s.logprobs(r, &out); err != nil {
		return out, err
	}
	return out, s.tokenOptions(r, &out)
}

// checkRanges reports the first option out of range in vLLM's words.
func checkRanges(o *qwenvl.Sampling) error {
	switch {
	case !(o.PresencePenalty >= -2 && o.PresencePenalty <= 2):
		return badRequest("", "presence_penalty must be in [-2, 2], got %s.", python(o.PresencePenalty))
	case !(o.FrequencyPenalty >= -2 && o.FrequencyPenalty <= 2):
		return badRequest("", "frequency_penalty must be in [-2, 2], got %s.", python(o.FrequencyPenalty))
	case !(o.RepetitionPenalty > 0 && o.RepetitionPenalty <= math.MaxFloat32):
		return badRequest("", "repetition_penalty must be greater than zero, got %s.", python(o.RepetitionPenalty))
	case !(o.Temperature >= 0 && o.Temperature <= math.MaxFloat32):
		return badValue("temperature", python(o.Temperature), "temperature must be non-negative, got %s.", python(o.Temperature))
	case !(o.TopP > 0 && o.TopP <= 1):
		return badValue("top_p", python(o.TopP), "top_p must be in (0, 1], got %s.", python(o.TopP))
	case o.TopK < -1:
		return badRequest("", "top_k must be 0 (disable), or at least 1, got %d.", o.TopK)
	case !(o.MinP >= 0 && o.MinP <= 1):
		return badRequest("", "min_p must be in [0, 1], got %s.", python(o.MinP))
	case o.MinTokens < 0:
		return badRequest("", "min_tokens must be greater than or equal to 0, got %d.", o.MinTokens)
	}
	return nil
}

// choices checks n.
func (s *Server) choices(r *chatRequest) (int, error) {
	n := or(r.N, 1)
	if n < 1 {
		return 0, badRequest("", "n must be at least 1, got %d.", n)
	}
	if n > s.options.MaxChoices {
		return 0, badRequest("", "n must be at most %d, got %d.", s.options.MaxChoices, n)
	}
	return n, nil
}

// lengths sets the number of tokens to generate, within the model's length.
func (s *Server) lengths(r *chatRequest, out *qwenvl.Sampling, promptTokens int) error {
	limit := s.engine.MaxLength()
	asked, param := r.MaxCompletionTokens, "max_completion_tokens"
	if asked == nil {
		asked, param = r.MaxTokens, "max_tokens"
	}
	switch {
	case asked == nil && promptTokens >= limit:
		return badValue("input_tokens", promptTokens,
			"This model's maximum context length is %d tokens. However, your request has %d input tokens. Please reduce the length of the input messages.",
			limit, promptTokens)
	case asked == nil:
		out.MaxTokens = limit - promptTokens
	case *asked < 1:
		return badValue(param, *asked, "%s must be at least 1, got %d.", param, *asked)
	case *asked > limit:
		return badValue(param, *asked, "%s=%d cannot be greater than max_model_len=max_total_tokens=%d. Please request fewer output tokens.",
			param, *asked, limit)
	case promptTokens+*asked > limit:
		least := limit - *asked + 1
		return badValue("input_tokens", least,
			"This model's maximum context length is %d tokens. However, you requested %d output tokens and your prompt contains at least %d input tokens, for a total of at least %d tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
			limit, *asked, least, limit+1)
	default:
		out.MaxTokens = *asked
	}
	if out.MinTokens > out.MaxTokens {
		return badRequest("", "min_tokens must be less than or equal to max_tokens=%d, got %d.", out.MaxTokens, out.MinTokens)
	}
	return nil
}

// logprobs sets how many candidates are returned for each token.
func (s *Server) logprobs(r *chatRequest, out *qwenvl.Sampling) error {
	k := or(r.TopLogprobs, 0)
	if k == 0 {
		return nil
	}
	switch {
	case k < -1:
		return badValue("top_logprobs", k, "`top_logprobs` must be a positive value or -1.")
	case !or(r.Logprobs, false):
		return badRequest("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)")
	}
	cap := s.options.MaxLogprobs
	if cap >= 0 && (k > cap || k == -1) {
		asked := k
		if k == -1 {
			asked = s.config.VocabSize
		}
		return badValue("logprobs", k, "Requested sample logprobs of %d, which is greater than max allowed: %d", asked, cap)
	}
	out.TopLogProbs = k
	return nil
}

// tokenOptions checks everything that names token ids.
func (s *Server) tokenOptions(r *chatRequest, out *qwenvl.Sampling) error {
	vocabulary := s.config.VocabSize
	outside := func(ids []int32) bool {
		return slices.ContainsFunc(ids, func(id int32) bool { return id < 0 || int(id) >= vocabulary })
	}
	if r.AllowedTokenIDs != nil && len(r.AllowedTokenIDs) == 0 {
		return badRequest("", "allowed_token_ids is not None and empty!")
	}
	if outside(r.AllowedTokenIDs) {
		return badRequest("allowed_token_ids", "allowed_token_ids contains out-of-vocab token id! (parameter=allowed_token_ids)")
	}
	if outside(r.StopTokenIDs) {
		// No token outside the vocabulary is ever sampled: vLLM lets them be.
		out.StopTokens = slices.DeleteFunc(slices.Clone(r.StopTokenIDs), func(id int32) bool { return outside([]int32{id}) })
	}
	if slices.Contains(r.Stop, "") {
		return badRequest("", "stop cannot contain an empty string.")
	}
	for key, add := range r.LogitBias {
		id, err := strconv.Atoi(key)
		if err != nil {
			return badRequest("logit_bias", "Invalid key in logit_bias: '%s'. Keys must be token ids.", key)
		}
		if id < 0 || id >= vocabulary {
			return badRequest("logit_bias", "token_id(s) [%d] in logit_bias contain out-of-vocab token ids. Vocabulary size: %d", id, vocabulary)
		}
		out.Bias = append(out.Bias, qwenvl.TokenBias{Token: int32(id), Add: float32(max(-100, min(100, add)))})
	}
	// A map has no order; biases of different tokens commute, but not to the eye.
	slices.SortFunc(out.Bias, func(a, b qwenvl.TokenBias) int { return int(a.Token - b.Token) })
	return nil
}
