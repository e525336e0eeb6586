package remote

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/uadt-train/uadt-train/trainer"
)

type denominators struct {
	Tokens    int `json:"tokens"`
	Sequences int `json:"sequences"`
	MaxTokens int `json:"max_tokens"`
}

// optionsMessage is trainer.StepOptions on the wire.
type optionsMessage struct {
	Loss            string       `json:"loss"`
	Denominators    denominators `json:"denominators"`
	LearningRate    float64      `json:"learning_rate"`
	Aggregation     string       `json:"aggregation"`
	ClipLow         float64      `json:"clip_low"`
	ClipHigh        float64      `json:"clip_high"`
	DualClip        float64      `json:"dual_clip"`
	KL              string       `json:"kl"`
	KLCoef          float64      `json:"kl_coef"`
	KLClamp         bool         `json:"kl_clamp"`
	CorrectionLevel string       `json:"correction_level"`
	CorrectionMode  string       `json:"correction_mode"`
	CorrectionLower float64      `json:"correction_lower"`
	CorrectionUpper float64      `json:"correction_upper"`
	CovarianceKind  string       `json:"covariance_kind"`
	CovarianceShare float64      `json:"covariance_share"`
	CovarianceCoef  float64      `json:"covariance_coef"`
	EntropyBonus    float64      `json:"entropy_bonus"`
	EntropyQuantile float64      `json:"entropy_quantile"`
	GradClip        float64      `json:"grad_clip"`
	Temperature     float64      `json:"temperature"`
	BannedIDs       []int32      `json:"banned"`
}

type stepBody struct {
	Step    int            `json:"step"`
	Options optionsMessage `json:"options"`
}

// defaultUpper is Correction.Upper where it is 0, as package trainer has it.
const defaultUpper = 2

func optionsOf(o trainer.StepOptions) optionsMessage {
	return optionsMessage{
		Loss: string(o.Loss), Aggregation: string(o.Aggregation), LearningRate: o.LearningRate, GradClip: o.GradClip,
		Denominators: denominators(o.Denominators),
		ClipLow:      o.ClipLow, ClipHigh: o.ClipHigh, DualClip: o.DualClip,
		KL: string(o.KL.Kind), KLCoef: o.KL.Coef, KLClamp: o.KL.Clamp,
		CorrectionLevel: o.Correction.Level, CorrectionMode: o.Correction.Mode,
		CorrectionLower: o.Correction.Lower, CorrectionUpper: or(o.Correction.Upper, defaultUpper),
		CovarianceKind: o.Covariance.Kind, CovarianceShare: o.Covariance.Share, CovarianceCoef: o.Covariance.Coef,
		EntropyBonus: o.EntropyBonus, EntropyQuantile: o.EntropyQuantile,
		Temperature: o.Temperature, BannedIDs: listed(o.Banned),
	}
}

// rankReport is the body of a rank's answer to step. Its sums are over the
// rank's own tokens; the gradient norm is that of all ranks.
type rankReport struct {
	Step      int                `json:"step"`
	GradNorm  float64            `json:"grad_norm"`
	Tokens    int                `json:"tokens"`
	Sums      map[string]float64 `json:"sums"`
	Maxima    map[string]float64 `json:"maxima"`
	Seconds   map[string]float64 `json:"seconds"`
	PeakBytes int64              `json:"peak_bytes"`
}

// merge adds up what the ranks report. Ranks are added in order, so that the
// same answers give the same bits.
func merge(answers []answer) (trainer.Report, error) {
	var total trainer.LossSums
	var norm float64
	var peak int64
	for rank, a := range answers {
		var r rankReport
		if err := a.body(&r); err != nil {
			return trainer.Report{}, err
		}
		if rank > 0 && r.GradNorm != norm {
			return trainer.Report{}, fmt.Errorf("%w: gradient norm %v on rank %d, %v on rank 0", ErrFrame, r.GradNorm, rank, norm)
		}
		norm, peak = r.GradNorm, max(peak, r.PeakBytes)
		sums, err := lossSums(r)
		if err != nil {
			return trainer.Report{}, err
		}
		total.Add(sums)
	}
	report := total.Report()
	report.GradNorm, report.PeakBytes = norm, peak
	return report, nil
}

// lossSums sorts the named sums of a rank. A name that is not known is an
// error: a number would be lost.
func lossSums(r rankReport) (trainer.LossSums, error) {
	s := trainer.LossSums{Tokens: r.Tokens}
	floats := map[string]*float64{
		"policy": &s.Policy, "kl": &s.KL, "bonus": &s.Bonus, "behaviour": &s.Behaviour, "reference": &s.Reference,
		"entropy": &s.Entropy, "gap_w": &s.Gap.W, "gap_difference": &s.Gap.Difference,
	}
	counts := map[string]*int{
		"clamped": &s.Clamped, "low": &s.Low, "high": &s.High, "dual": &s.Dual, "gap_tokens": &s.Gap.Tokens, "gap_outside": &s.Gap.Outside,
	}
	for _, name := range slices.Sorted(maps.Keys(r.Sums)) {
		if into, ok := floats[name]; ok {
			*into = r.Sums[name]
		} else if into, ok := counts[name]; ok {
			*into = int(r.Sums[name])
		} else {
			return s, fmt.Errorf("%w: report with an unknown sum %q", ErrFrame, name)
		}
	}
	for name, value := range r.Maxima {
		if name != "gap_w_max" {
			return s, fmt.Errorf("%w: report with an unknown maximum %q", ErrFrame, name)
		}
		s.Gap.WMax = value
	}
	return s, nil
}

// offenders joins the groups and traces that the ranks name, in the order of the
// batch; all groups when none is named.
func (l *layout) offenders(bad *trainer.BadStepError, answers []answer) error {
	named := map[string]bool{}
	traces := map[string][]string{} // by group, whose id may have slashes
	for _, a := range answers {
		if a.Error != nil {
			for _, id := range a.Error.Groups {
				named[id] = true
			}
			for _, trace := range a.Error.Traces {
				group := trace[:max(0, strings.LastIndexByte(trace, '/'))]
				traces[group] = append(traces[group], trace)
			}
		}
	}
	out := &trainer.BadStepError{Step: bad.Step, What: bad.What}
	for _, id := range l.ids {
		if named[id] || len(named) == 0 {
			out.Groups = append(out.Groups, id)
		}
		out.Traces = append(out.Traces, traces[id]...)
	}
	return out
}
