package uadt

// Result is one shaped batch, in the order of the batch that went in.
type Result struct {
	Step                int     // s, the shaping step that these numbers belong to, from 0
	Lambda, Gain, Gamma float64 // the schedules read at s
	// Tau and Sigma are the threshold and spread that were used, in nats; NextTau
	// and NextSigma are those of step s+1.
	Tau, Sigma, NextTau, NextSigma float64
	Mu, SD                         float64       // population mean and SD of H over the counted traces
	Counted                        int           // traces that entered Mu and SD
	Estimator                      Estimator     // of every H in here
	Rule                           string        // name of the rule that made Shaped
	ShadowRules                    []string      // names, in the order of TraceResult.Shadow
	Groups                         []GroupResult // [Q]
	// Metrics holds the uadt/*, advantage/* and entropy/* numbers by their
	// public names. A ratio with denominator 0 is absent, never 0.
	Metrics map[string]float64
	Alarms  []Alarm // in a fixed order; empty when all is well
}

// GroupResult is what was computed for one group.
type GroupResult struct {
	ID string
	// Mean and Std (n-1) are of the scored rewards before any penalty; both 0
	// when fewer than two traces are scored.
	Mean, Std float64
	Scored    int // traces with a reward
	// ZeroVariance says that two or more rewards are scored and Std is below
	// grpo.min_std. Informative says that it is at least that.
	ZeroVariance, Informative bool
	Traces                    []TraceResult // [G]
}

// TraceResult is what was computed for one trace.
type TraceResult struct {
	ID      string
	Dropped DropReason
	A       float64 // group-normalised advantage, before shaping
	// H is the mean of the trace's own tokens, nats; HasH is false when its span
	// is empty or the trace is dropped, and H is then 0.
	H    float64
	HasH bool
	// Counted says that the trace entered mu and SD and has a U and an Omega;
	// where it is false both are 0.
	Counted bool
	U       float64 // distance from the threshold, in the units of uadt.norm
	Omega   float64 // the factor that was applied, after any placebo, in (-1, 1)
	Shaped  float64 // A', after re-centring and rescaling
	// TokenShaped is [T] for token-level rules, and nil for all others, whose A'
	// is the same for every token.
	TokenShaped []float64
	Shadow      []float64 // A' under each shadow rule, re-centred and rescaled alike
}

// Values returns A' as trainer.Advantages wants it: [Q][G][1], or [T] for the
// traces of a token-level rule. Dropped traces have 0.
func (r Result) Values() [][][]float32 {
	values := make([][][]float32, len(r.Groups))
	for q, g := range r.Groups {
		values[q] = make([][]float32, len(g.Traces))
		for i, t := range g.Traces {
			if t.TokenShaped == nil {
				values[q][i] = []float32{float32(t.Shaped)}
				continue
			}
			row := make([]float32, len(t.TokenShaped))
			for k, a := range t.TokenShaped {
				row[k] = float32(a)
			}
			values[q][i] = row
		}
	}
	return values
}

// Alarm is one thing that a reader of the run should know of.
type Alarm struct {
	Name    string  // stable, such as "omega_saturated"; the constants Alarm...
	Value   float64 // what was measured
	Limit   float64 // what it went past
	Message string  // one sentence, lower case
}
