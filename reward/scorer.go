package reward

import (
	"context"
	"errors"
	"math"

	"github.com/uadt-train/uadt-train/rollout"
)

// New returns the built-in scorer: format, answer and the extra parts.
func New(options Options) (Scorer, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	return &scorer{options: options}, nil
}

type scorer struct{ options Options }

// Score implements [Scorer].
func (s *scorer) Score(ctx context.Context, q rollout.Question, t rollout.Trace) (Score, error) {
	if err := ctx.Err(); err != nil {
		return Score{}, err
	}
	format := Format(t)
	format.Weight = s.options.FormatWeight
	answer, part, err := s.answer(ctx, q, t)
	if err != nil {
		return Score{}, err
	}
	score := Score{Parts: make([]Part, 0, 2+len(s.options.Extra)), Answer: answer}
	score.Parts = append(score.Parts, format, part)
	for _, e := range s.options.Extra {
		p, err := s.plugged(ctx, e.Score, q, t)
		if err != nil {
			return Score{}, err
		}
		p.Name, p.Weight = e.Name, e.Weight
		score.Parts = append(score.Parts, p)
	}
	for _, p := range score.Parts {
		if p.Missing && p.Weight != 0 {
			score.Missing = true
		}
		score.Total += p.Weight * p.Value
	}
	if score.Missing {
		score.Total = 0
	}
	score.Correct = !part.Missing && part.Value == 1
	return score, nil
}

// answer computes the answer part under the configured modes.
func (s *scorer) answer(ctx context.Context, q rollout.Question, t rollout.Trace) (Answer, Part, error) {
	a := Strict(q, t)
	part := Part{Name: AnswerPart, Weight: s.options.AnswerWeight, Reason: a.Reason}
	switch {
	case a.Reason == CodeAborted || a.Reason == CodeNoGold:
		part.Missing = true
	case q.Kind == rollout.Open && s.options.Open == OpenJudge && a.Extracted != "":
		judged, err := s.plugged(ctx, s.options.Judge, q, t)
		if err != nil {
			return a, part, err
		}
		judged.Name, judged.Weight = part.Name, part.Weight
		part = judged
	case q.Kind == rollout.Open && s.options.Open == OpenF1,
		q.Kind == rollout.MultipleChoice && s.options.Multi == MultiF1:
		part.Value = a.F1
	case a.Exact:
		part.Value = 1
	}
	return a, part, nil
}

// plugged runs a foreign part within the time limit. It fails only when ctx
// itself has ended.
func (s *scorer) plugged(ctx context.Context, f PartFunc, q rollout.Question, t rollout.Trace) (Part, error) {
	limited, cancel := context.WithTimeout(ctx, s.options.Timeout)
	defer cancel()
	p, err := f(limited, q, t)
	switch {
	case ctx.Err() != nil:
		return Part{}, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return Part{Missing: true, Reason: CodeTimeout, Detail: err.Error()}, nil
	case err != nil:
		return Part{Missing: true, Reason: CodePartFailed, Detail: err.Error()}, nil
	case p.Missing:
		p.Value = 0
	case math.IsNaN(p.Value) || math.IsInf(p.Value, 0):
		return Part{Missing: true, Reason: CodePartFailed, Detail: "value is not finite"}, nil
	}
	return p, nil
}
