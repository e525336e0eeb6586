package reward

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// MultiMode says what a multiple-choice answer is worth.
type MultiMode string

// The modes of multiple choice.
const (
	MultiExact MultiMode = "exact" // 1 for exactly the gold set, else 0
	MultiF1    MultiMode = "f1"    // F1 over letters
)

// OpenMode says what an open answer is worth.
type OpenMode string

// The modes of open questions.
const (
	OpenMatch OpenMode = "match" // 1 for the same name or a synonym of it, else 0
	OpenF1    OpenMode = "f1"    // token F1; it pays for wrong diagnoses that share words
	OpenJudge OpenMode = "judge" // what Options.Judge says
)

// Extra is a part that plugs in by name.
type Extra struct {
	Name   string  // unique, not format or answer
	Weight float64 // finite; may be negative; 0 only records it
	Score  PartFunc
}

// Options configures the built-in scorer. Start from [DefaultOptions].
type Options struct {
	FormatWeight float64       // weight of the format part, default 0.5; at least 0
	AnswerWeight float64       // weight of the answer part, default 1; at least 0
	Multi        MultiMode     // default exact
	Open         OpenMode      // default match
	Judge        PartFunc      // scores open answers when Open is judge; needed only then
	Extra        []Extra       // further parts, default none
	Timeout      time.Duration // longest time for one part that plugs in, default 60 s
}

// DefaultOptions returns the defaults of every field.
func DefaultOptions() Options {
	return Options{FormatWeight: 0.5, AnswerWeight: 1, Multi: MultiExact, Open: OpenMatch, Timeout: time.Minute}
}

// Validate reports everything that is wrong with o at once.
func (o Options) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, w := range map[string]float64{"reward.format": o.FormatWeight, "reward.answer": o.AnswerWeight} {
		if math.IsNaN(w) || math.IsInf(w, 0) || w < 0 {
			bad("%s is %v, want a finite weight of at least 0", name, w)
		}
	}
	if o.Multi != MultiExact && o.Multi != MultiF1 {
		bad("reward.multi is %q, want exact or f1", o.Multi)
	}
	switch o.Open {
	case OpenMatch, OpenF1:
	case OpenJudge:
		if o.Judge == nil {
			bad("reward.open is judge, but no judge is configured")
		}
	default:
		bad("reward.open is %q, want match, f1 or judge", o.Open)
	}
	if o.Timeout <= 0 {
		bad("reward timeout is %s, want more than 0", o.Timeout)
	}
	seen := map[string]bool{FormatPart: true, AnswerPart: true}
	for i, e := range o.Extra {
		if e.Name == "" || seen[e.Name] {
			bad("extra reward part %d is called %q, want a unique name", i, e.Name)
		}
		seen[e.Name] = true
		if e.Score == nil {
			bad("extra reward part %q has no function", e.Name)
		}
		if math.IsNaN(e.Weight) || math.IsInf(e.Weight, 0) {
			bad("weight of extra reward part %q is %v, want a finite number", e.Name, e.Weight)
		}
	}
	return errors.Join(errs...)
}
