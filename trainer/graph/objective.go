package graph

import (
	"context"
	"errors"
	"fmt"

	"github.com/uadt-train/uadt-train/trainer"
)

// objective is the loss of one update: it turns log-probabilities and entropies
// into derivatives by trainer.LossOfTrace. Whatever looks at the whole update
// (chosen tokens) is settled before the graphs run, so that traces are
// independent and may be computed in any order.
type objective struct {
	batch      *trainer.Batch
	advantages trainer.Advantages
	old        [][][]float32 // nil: the weights being trained are those of the batch's start, so old is lp
	reference  [][][]float32
	kept       [][][]bool
	covariance [][][]bool
	sums       [][]trainer.LossSums // [Q][G], added up in order by report
}

// objective prepares the loss of a batch under advantages.
func (s *stage) objective(ctx context.Context, b *loaded, a trainer.Advantages, h head) (*objective, error) {
	o := &objective{batch: &b.batch, advantages: a, sums: make([][]trainer.LossSums, len(b.batch.Groups))}
	for i, g := range b.batch.Groups {
		o.sums[i] = make([]trainer.LossSums, len(g.Traces))
	}
	options := a.Options
	if err := errors.Join(options.Validate(), checkValues(&b.batch, a.Values, options.Loss)); err != nil {
		return nil, err
	}
	scores := b.scores
	whole := options.Covariance.Kind != trainer.CovarianceOff || (options.EntropyQuantile > 0 && options.EntropyQuantile < 1)
	if scores == nil && whole {
		made := trainer.Scores{}
		var err error
		if made.Old, made.Entropy, err = s.logprobs(ctx, b, s.values, h); err != nil {
			return nil, err
		}
		scores = &made
	}
	if scores != nil {
		if bad := notFinite(&b.batch, scores); len(bad) > 0 {
			return nil, &trainer.BadStepError{Step: b.batch.Step, What: "log-probability or entropy", Groups: bad}
		}
		o.old, o.reference = scores.Old, scores.Reference
	}
	if options.KL.Kind != trainer.KLOff && o.reference == nil {
		if s.reference == nil {
			return nil, fmt.Errorf("KL %s asks for a reference, the stage has none", options.KL.Kind)
		}
		var err error
		if o.reference, _, err = s.logprobs(ctx, b, s.reference, h); err != nil {
			return nil, fmt.Errorf("reference: %w", err)
		}
	}
	if !whole {
		return o, nil
	}
	var err error
	if o.kept, err = trainer.HighEntropy(b.batch.Groups, scores.Entropy, options.EntropyQuantile); err != nil {
		return nil, err
	}
	if options.Covariance.Kind != trainer.CovarianceOff {
		o.covariance, err = trainer.HighCovariance(b.batch.Groups, scores.Old, a.Values, options.Covariance.Share)
	}
	return o, err
}

// checkValues refuses advantages of another shape than the batch.
func checkValues(b *trainer.Batch, values [][][]float32, loss trainer.Loss) error {
	if loss == trainer.NLL && values == nil {
		return nil
	}
	if len(values) != len(b.Groups) {
		return fmt.Errorf("advantages of %d groups, the batch has %d", len(values), len(b.Groups))
	}
	for q, g := range b.Groups {
		if len(values[q]) != len(g.Traces) {
			return fmt.Errorf("group %s: advantages of %d traces, want %d", g.ID, len(values[q]), len(g.Traces))
		}
		for i, t := range g.Traces {
			if n := len(values[q][i]); n != 1 && n != len(t.Tokens) {
				return fmt.Errorf("group %s trace %d: %d advantages, want 1 or %d", g.ID, i, n, len(t.Tokens))
			}
		}
	}
	return nil
}

// notFinite names the groups with a score that is NaN or infinite where it
// counts.
func notFinite(b *trainer.Batch, scores *trainer.Scores) []string {
	var bad []string
	for q, g := range b.Groups {
		found := false
		for i, t := range g.Traces {
			for j := range t.Tokens {
				if t.Mask != nil && !t.Mask[j] {
					continue
				}
				found = found || !finite(float64(scores.Old[q][i][j])) || !finite(float64(scores.Entropy[q][i][j]))
			}
		}
		if found {
			bad = append(bad, g.ID)
		}
	}
	return bad
}

// chunk implements lossFunc. Several goroutines call it, for different traces.
func (o *objective) chunk(c *chunk, out, coef []float32) (float64, error) {
	total := 0.0
	for _, ref := range c.traces {
		loss, err := trainer.LossOfTrace(o.input(ref, out), o.advantages.Options)
		if err != nil {
			return 0, fmt.Errorf("group %s trace %d: %w", o.batch.Groups[ref.group].ID, ref.trace, err)
		}
		for i, g := range loss.GradLP {
			coef[2*(ref.targets.from+i)] = float32(g)
		}
		for i, g := range loss.GradEntropy {
			coef[2*(ref.targets.from+i)+1] = float32(g)
		}
		o.sums[ref.group][ref.trace] = loss.Sums
		total += loss.Sums.Total()
	}
	return total, nil
}

// input collects what the loss of one trace is made of.
func (o *objective) input(ref traceRef, out []float32) trainer.TraceInput {
	trace := o.batch.Groups[ref.group].Traces[ref.trace]
	n := len(trace.Tokens)
	in := trainer.TraceInput{LP: make([]float64, n), Entropy: make([]float64, n), Mask: trace.Mask}
	for i := range n {
		at := 2 * (ref.targets.from + i)
		in.LP[i], in.Entropy[i] = float64(out[at]), float64(out[at+1])
	}
	in.Old = in.LP
	if o.old != nil {
		in.Old = widen(o.old[ref.group][ref.trace])
	}
	if o.reference != nil && o.advantages.Options.KL.Kind != trainer.KLOff {
		in.Reference = widen(o.reference[ref.group][ref.trace])
	}
	if trace.RolloutLogprobs != nil {
		in.Rollout = widen(trace.RolloutLogprobs)
	}
	if o.advantages.Values != nil {
		in.Advantages = widen(o.advantages.Values[ref.group][ref.trace])
	}
	if o.kept != nil {
		in.Kept = o.kept[ref.group][ref.trace]
	}
	if o.covariance != nil {
		in.Covariance = o.covariance[ref.group][ref.trace]
	}
	return in
}

// widen converts to float64.
func widen(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

// report adds up the traces in batch order, whatever lane computed them.
func (o *objective) report() trainer.Report {
	var sums trainer.LossSums
	for _, g := range o.sums {
		for _, s := range g {
			sums.Add(s)
		}
	}
	return sums.Report()
}

// bad names the groups whose loss is not finite.
func (o *objective) bad() []string {
	var out []string
	for q, g := range o.sums {
		ok := true
		for _, s := range g {
			ok = ok && s.Finite()
		}
		if !ok {
			out = append(out, o.batch.Groups[q].ID)
		}
	}
	return out
}
