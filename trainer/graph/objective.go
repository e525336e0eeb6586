package graph

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/trainer"
)

// objective is the loss of one update: it turns log-probabilities and entropies
// into derivatives, chunk by chunk, by the functions of package trainer.
type objective struct {
	b          *loaded
	advantages trainer.Advantages
	parts      [][]float64 // [Q][G] loss of every trace: summed in order, whatever lane computed it
}

func (s *stage) objective(_ context.Context, b *loaded, a trainer.Advantages, _ head) (*objective, error) {
	o := &objective{b: b, advantages: a}
	if a.Options.Loss != trainer.NLL {
		return nil, fmt.Errorf("loss %q is not there yet", a.Options.Loss)
	}
	for _, g := range b.batch.Groups {
		o.parts = append(o.parts, make([]float64, len(g.Traces)))
	}
	return o, nil
}

// chunk implements lossFunc.
func (o *objective) chunk(c *chunk, out, coef []float32) (float64, error) {
	total := 0.0
	scale := 1 / float64(o.advantages.Options.Denominators.Tokens)
	for _, ref := range c.traces {
		trace := o.b.batch.Groups[ref.group].Traces[ref.trace]
		sum := 0.0
		for i := range trace.Tokens {
			if trace.Mask != nil && !trace.Mask[i] {
				continue
			}
			at := 2 * (ref.targets.from + i)
			sum -= float64(out[at]) * scale
			coef[at] = float32(-scale)
		}
		o.parts[ref.group][ref.trace] = sum
		total += sum
	}
	return total, nil
}

func (o *objective) report() trainer.Report {
	r := trainer.Report{}
	for _, g := range o.parts {
		for _, v := range g {
			r.Loss += v
		}
	}
	r.PolicyLoss = r.Loss
	return r
}

func (o *objective) bad() (string, []string) { return "", nil }
