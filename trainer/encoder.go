package trainer

import (
	"context"

	"github.com/uadt-train/uadt-train/rollout"
)

// Encoder turns the text and images of a record into tokens for stages that
// have no fleet to do it.
type Encoder interface {
	// Encode renders q.Messages with the generation prompt, expands the images
	// and tokenises response, end-of-sequence token included.
	Encode(ctx context.Context, q rollout.Question, response string) (Encoded, error)
}

// Encoded is a tokenised record.
type Encoded struct {
	Prompt   []int32 // [P] after image expansion
	Response []int32 // [T] end-of-sequence token included
}
