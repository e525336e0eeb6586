package rollouttest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// EOS is the end-of-sequence id of [Answer]'s vocabulary, whose other ids are
// the 256 byte values.
const EOS int32 = 256

// Answer is the scripted policy: one trace as a function of the question, the
// trace's own seed, the policy version and the sampling options, and of nothing
// else. Its texts are well formed; the share of right ones grows with version,
// from two fifths to nine tenths; longer thinking is more often right; about
// one trace in sixteen never stops and is cut at MaxTokens.
func Answer(q rollout.Question, seed int64, version int, sampling rollout.Sampling) rollout.Trace {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q|%d|%d", q.ID, seed, version))
	rng := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])))
	if sampling.Temperature == 0 {
		rng = rand.New(rand.NewPCG(uint64(version), uint64(len(q.ID))))
	}
	words := 2 + rng.IntN(14)
	skill := 0.4 + 0.5*(1-math.Exp(-float64(version)/4)) + 0.02*float64(words-9)
	answer := q.Gold
	if rng.Float64() > skill || answer == "" {
		answer = "Z"
	}
	text := fmt.Sprintf("<think>%s</think><answer>%s</answer>", strings.TrimSpace(strings.Repeat("look ", words)), answer)
	if rng.IntN(16) == 0 {
		text = "<think>" + strings.Repeat("look ", 1+sampling.MaxTokens/5)
	}
	trace := rollout.Trace{Tokens: make([]int32, 0, len(text)+1)}
	for _, b := range []byte(text) {
		trace.Tokens = append(trace.Tokens, int32(b))
	}
	trace.Tokens = append(trace.Tokens, EOS)
	if len(trace.Tokens) > sampling.MaxTokens {
		trace.Tokens, trace.Finish = trace.Tokens[:sampling.MaxTokens], rollout.FinishLength
		text = text[:sampling.MaxTokens]
	}
	trace.Text = text
	spread := 0.2 + rng.Float64()
	for range trace.Tokens {
		trace.Logprobs = append(trace.Logprobs, float32(-spread*rng.ExpFloat64()))
	}
	if sampling.TopLogprobs > 0 {
		for _, lp := range trace.Logprobs {
			trace.TopKEntropy = append(trace.TopKEntropy, -lp*0.9)
		}
	}
	return trace
}

// prompt renders the text parts of a question as byte tokens, with one id over
// EOS for every image.
func prompt(q rollout.Question) []int32 {
	var ids []int32
	for _, m := range q.Messages {
		for _, part := range m.Parts {
			if part.Image != nil {
				ids = append(ids, EOS+1)
			}
			for _, b := range []byte(part.Text) {
				ids = append(ids, int32(b))
			}
		}
	}
	if len(ids) == 0 {
		for _, b := range []byte(q.Text) {
			ids = append(ids, int32(b))
		}
	}
	return append(ids, '\n')
}
