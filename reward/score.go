package reward

import (
	"context"

	"github.com/uadt-train/uadt-train/rollout"
)

// The names of the two parts that every score has.
const (
	FormatPart = "format"
	AnswerPart = "answer"
)

// Scorer is the seam to everything that turns a trace into a reward. Calls may
// be made from several goroutines and are always bounded in time.
type Scorer interface {
	// Score scores one trace of question. It fails only when ctx ends; whatever
	// else goes wrong makes the score missing and says why.
	Score(ctx context.Context, question rollout.Question, trace rollout.Trace) (Score, error)
}

// PartFunc computes one part. An error makes the part missing, with the reason
// [CodePartFailed], unless it wraps the end of ctx.
type PartFunc func(ctx context.Context, question rollout.Question, trace rollout.Trace) (Part, error)

// Part is one term of a reward.
type Part struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`             // before weighting; 0 when missing
	Weight  float64 `json:"weight"`            // Value*Weight enters the total
	Missing bool    `json:"missing,omitempty"` // could not be computed
	Reason  Code    `json:"reason"`            // why it has this value
	Detail  string  `json:"detail,omitempty"`  // for people: what went wrong
}

// Score is what one trace earned.
type Score struct {
	Parts []Part // format, answer, then the extra parts in the order of the options
	// Total is the weighted sum of the parts, 0 when Missing.
	Total float64
	// Missing says that a part with a weight could not be computed: the trace is
	// left out of its group's statistics.
	Missing bool
	// Correct is answer = 1, and nothing else.
	Correct bool
	// Answer is how the answer was found and compared, whatever the mode of the
	// answer part.
	Answer Answer
}

// Part returns the part called name.
func (s Score) Part(name string) (Part, bool) {
	for _, p := range s.Parts {
		if p.Name == name {
			return p, true
		}
	}
	return Part{}, false
}

// Value returns the value of the part called name, 0 when there is none.
func (s Score) Value(name string) float64 {
	p, _ := s.Part(name)
	return p.Value
}

// Answer is an answer that was looked for in a response and compared with the
// gold answer of its question.
type Answer struct {
	// Extracted is what was compared: the letters of a choice, comma-separated
	// and sorted, or the normalised open answer. Empty when there is none.
	Extracted string
	Reason    Code
	// Exact says that the answer is right as a whole: the letter, the whole set
	// of letters, or a match by name.
	Exact bool
	// F1 is the harmonic mean of precision and recall over letters (choice) or
	// tokens (open), in [0, 1]. Of single choice it equals Exact.
	F1 float64
	// LetterOnly says that a choice question's options could not be parsed from
	// its text, so that only bare letters could be recognised.
	LetterOnly bool
}
