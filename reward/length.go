package reward

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// Length returns a part whose value is the share of the token budget that the
// trace used, T/maxTokens in [0, 1]: with a negative weight it is a length
// penalty, with weight 0 a record.
func Length(maxTokens int) (PartFunc, error) {
	if maxTokens < 1 {
		return nil, fmt.Errorf("length part: max tokens is %d, want at least 1", maxTokens)
	}
	return func(_ context.Context, _ rollout.Question, t rollout.Trace) (Part, error) {
		return Part{Value: min(1, float64(len(t.Tokens))/float64(maxTokens)), Reason: CodeScored}, nil
	}, nil
}

// Overlong returns the soft penalty of DAPO (arXiv 2503.14476, eq. 13) with
// values in [-1, 0]: 0 up to maxTokens-buffer tokens, then falling linearly to
// -1 at maxTokens. Give it a positive weight.
func Overlong(maxTokens, buffer int) (PartFunc, error) {
	if buffer < 1 || maxTokens < buffer {
		return nil, fmt.Errorf("overlong part: buffer is %d and max tokens %d, want 1 <= buffer <= max tokens", buffer, maxTokens)
	}
	return func(_ context.Context, _ rollout.Question, t rollout.Trace) (Part, error) {
		over := float64(len(t.Tokens)-(maxTokens-buffer)) / float64(buffer)
		return Part{Value: -min(1, max(0, over)), Reason: CodeScored}, nil
	}, nil
}
