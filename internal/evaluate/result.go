package evaluate

import (
	"strings"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

// Outcome is what one response to a question is worth.
type Outcome struct {
	Strict    reward.Answer // from the single answer block, as in training
	Lenient   reward.Answer // from wherever an answer can be found
	Formatted bool          // the form that was asked for
	// Judge is the verdict of a language model in [0, 1], nil without one.
	Judge *float64
}

// Assess scores one response, without a judge.
func Assess(q rollout.Question, t rollout.Trace) Outcome {
	return Outcome{Strict: reward.Strict(q, t), Lenient: reward.Lenient(q, t), Formatted: reward.Format(t).Value == 1}
}

// Result is one evaluation record and what was answered.
type Result struct {
	Dataset  string
	Question rollout.Question
	// Cluster names what makes records depend on one another: the patient, or
	// the image. Default: the digests of the question's images, or its id when it
	// has none.
	Cluster string
	// Outcomes are the responses; none means that the record could not be
	// answered, because its job was dropped.
	Outcomes []Outcome
}

// cluster is the cluster of r, the default filled in.
func (r Result) cluster() string {
	if r.Cluster != "" {
		return r.Cluster
	}
	images := r.Question.Images()
	if len(images) == 0 {
		return "id:" + r.Question.ID
	}
	digests := make([]string, len(images))
	for i, image := range images {
		digests[i] = image.Digest
	}
	return "images:" + strings.Join(digests, ",")
}

// mean averages what value says of each outcome.
func (r Result) mean(value func(Outcome) float64) float64 {
	sum := 0.0
	for _, o := range r.Outcomes {
		sum += value(o)
	}
	return sum / float64(len(r.Outcomes))
}

func indicator(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func strict(o Outcome) float64  { return indicator(o.Strict.Exact) }
func lenient(o Outcome) float64 { return indicator(o.Lenient.Exact) }
func strictF1(o Outcome) float64 {
	return o.Strict.F1
}
func formatted(o Outcome) float64 { return indicator(o.Formatted) }
