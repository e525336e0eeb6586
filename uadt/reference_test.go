package uadt

import (
	"encoding/json"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// A second reading of the definitions: straight from the formulas, one flat
// list of traces, no state but four numbers. It shares nothing with the package
// but its types.

// reference is a run of the definitions.
type reference struct {
	setup      Setup
	s          int
	tau, sigma float64
	seeded     bool
}

// flat is one trace of a batch on its way through the definitions.
type flat struct {
	Trace
	group            int
	h                float64
	hasH, drop       bool
	a, omega, shaped float64
	informative      bool
}

// value reads a schedule at s of n steps.
func (ref *reference) value(v Schedule) float64 {
	n := float64(ref.setup.StageSteps)
	steps := func(e Extent) float64 {
		if e.Share > 0 {
			return e.Share * n
		}
		return e.Steps
	}
	s, w, over := float64(ref.s), steps(v.Warmup), steps(v.Over)
	factor := 1.0
	if w > 0 && s+1 < w {
		factor = (s + 1) / w
	}
	s -= w // over starts after the warm-up
	if s < 0 {
		s = 0
	}
	x := v.From
	switch v.Shape {
	case ShapeLinear:
		x = v.To
		if s < over {
			x = v.From*(1-s/over) + v.To*s/over
		}
	case ShapeCosine:
		x = v.To
		if s < over {
			c := math.Cos(math.Pi * s / over)
			x = v.From*(1+c)/2 + v.To*(1-c)/2
		}
	case ShapeStep:
		if s >= over {
			x = v.To
		}
	}
	return factor * x
}

func (ref *reference) gamma() float64 {
	g := ref.setup.Options.Gamma
	half := g.HalfLife.Steps
	if g.HalfLife.Share > 0 {
		half = g.HalfLife.Share * float64(ref.setup.StageSteps)
	}
	if half == 0 {
		return g.Value
	}
	return math.Pow(0.5, 1/half)
}

// flatten lists the traces with H, the mean over the span.
func (ref *reference) flatten(b Batch) []*flat {
	var out []*flat
	for q, g := range b.Groups {
		for _, t := range g.Traces {
			x := &flat{Trace: t, group: q, drop: t.Aborted || t.Length == 0}
			if !x.drop && t.Entropies == nil {
				x.h, x.hasH = t.H, true
			}
			sum, n := 0.0, 0.0
			for k, e := range t.Entropies {
				if t.Span == nil || t.Span[k] {
					sum, n = sum+float64(e), n+1
				}
			}
			if !x.drop && n > 0 {
				x.h, x.hasH = sum/n, true
			}
			out = append(out, x)
		}
	}
	return out
}

// mean and spread (population) of what pick finds.
func meanSpread(all []*flat, pick func(*flat) (float64, bool)) (mean, spread, n float64) {
	for _, x := range all {
		if v, ok := pick(x); ok {
			mean, n = mean+v, n+1
		}
	}
	if n == 0 {
		return 0, 0, 0
	}
	mean /= n
	for _, x := range all {
		if v, ok := pick(x); ok {
			spread += (v - mean) * (v - mean)
		}
	}
	return mean, math.Sqrt(spread / n), n
}

// advantages sets a of every trace, group by group.
func (ref *reference) advantages(all []*flat, groups int) {
	o := ref.setup.Advantage
	for q := range groups {
		mine := func(value func(*flat) float64) func(*flat) (float64, bool) {
			return func(x *flat) (float64, bool) { return value(x), x.group == q && !x.drop && !x.Missing }
		}
		_, spread, n := meanSpread(all, mine(func(x *flat) float64 { return x.Reward }))
		if n < 2 || spread*math.Sqrt(n/(n-1)) < o.MinStd {
			continue
		}
		net := mine(func(x *flat) float64 { return x.Reward - x.Penalty })
		mean, spread, n := meanSpread(all, net)
		for _, x := range all {
			if x.group != q {
				continue
			}
			x.informative = true
			r, scored := net(x)
			if !scored {
				continue
			}
			switch o.Advantage {
			case GRPO:
				x.a = (r - mean) / (spread*math.Sqrt(n/(n-1)) + o.Eps)
			case DrGRPO:
				x.a = r - mean
			case RLOO:
				x.a = r - (mean*n-r)/(n-1) // less the mean of the others
			}
		}
	}
}

// omegas sets omega and moves the threshold.
func (ref *reference) omegas(all []*flat, groups int) {
	o := ref.setup.Options
	counts := func(x *flat) bool { return x.hasH && (o.Truncated == Include || !x.Truncated) }
	level := map[*flat]float64{}
	for q := range groups {
		mean, _, _ := meanSpread(all, func(x *flat) (float64, bool) { return x.h, x.group == q && counts(x) })
		for _, x := range all {
			if x.group == q {
				level[x] = x.h
				if o.Level == LevelGroup {
					level[x] = mean
				}
			}
		}
	}
	mu, sd, n := meanSpread(all, func(x *flat) (float64, bool) { return level[x], counts(x) })
	if n == 0 {
		return
	}
	if !ref.seeded {
		ref.tau, ref.sigma, ref.seeded = mu, sd, true
	}
	gamma := ref.gamma()
	tau, sigma := gamma*ref.tau+(1-gamma)*mu, gamma*ref.sigma+(1-gamma)*sd
	if o.Update == UpdateBefore {
		ref.tau, ref.sigma = tau, sigma
	}
	for _, x := range all {
		if !counts(x) {
			continue
		}
		u := level[x] - ref.tau
		switch {
		case o.Norm == Rel:
			u /= math.Max(ref.tau, o.Floor)
		case o.Norm == ZScore:
			u /= math.Max(ref.sigma, o.Floor)
		}
		x.omega = math.Tanh(ref.value(o.Gain) * u)
	}
	ref.tau, ref.sigma = tau, sigma
	if o.Placebo == PlaceboMean {
		for q := range groups {
			mean, _, _ := meanSpread(all, func(x *flat) (float64, bool) { return x.omega, x.group == q && counts(x) })
			for _, x := range all {
				if x.group == q && counts(x) {
					x.omega = mean
				}
			}
		}
	}
}

// rules sets A', then the two corrections over the whole batch.
func (ref *reference) rules(all []*flat) {
	o, lambda := ref.setup.Options, ref.value(ref.setup.Options.Lambda)
	learns := func(x *flat) bool { return x.informative && !x.drop && !x.Missing }
	for _, x := range all {
		size := math.Abs(x.a)
		switch {
		case !learns(x):
		case o.Rule == "none":
			x.shaped = x.a
		case o.Rule == "c1":
			x.shaped = x.a + lambda*x.omega*size
		case o.Rule == "c2":
			x.shaped = x.a + lambda*x.omega*x.a
		case o.Rule == "c3" && o.Kappa == 0:
			x.shaped = x.a + lambda*x.omega
		case o.Rule == "c3":
			x.shaped = x.a + math.Copysign(math.Min(math.Abs(lambda*x.omega), size/o.Kappa), x.omega)
		case o.Rule == "c4":
			x.shaped = x.a - lambda*x.omega*size
		}
	}
	if o.Recenter {
		mean, _, _ := meanSpread(all, func(x *flat) (float64, bool) { return x.shaped, learns(x) })
		for _, x := range all {
			if learns(x) {
				x.shaped -= mean
			}
		}
	}
	before, after := 0.0, 0.0
	for _, x := range all {
		before, after = before+math.Abs(x.a), after+math.Abs(x.shaped)
	}
	for _, x := range all {
		if o.Rescale && after > 0 {
			x.shaped *= before / after
		}
	}
}

// step shapes one batch by the definitions.
func (ref *reference) step(b Batch) []*flat {
	all := ref.flatten(b)
	ref.advantages(all, len(b.Groups))
	ref.omegas(all, len(b.Groups))
	ref.rules(all)
	ref.s++
	return all
}

// drawRun draws a setup with schedules instead of constants, and a half-life.
func drawRun(t *rapid.T) Setup {
	s := drawSetup(t)
	extent := func(label string, low int) Extent {
		if rapid.Bool().Draw(t, label+" share") {
			return Extent{Share: float64(rapid.IntRange(max(low, 1), 100).Draw(t, label+" percent")) / 100}
		}
		return Extent{Steps: float64(rapid.IntRange(low, 8).Draw(t, label))}
	}
	schedule := func(label string, most float64) Schedule {
		return Schedule{
			Shape: rapid.SampledFrom([]Shape{ShapeConstant, ShapeLinear, ShapeCosine, ShapeStep}).Draw(t, label),
			From:  rapid.Float64Range(0, most).Draw(t, label+" from"), To: rapid.Float64Range(0, most).Draw(t, label+" to"),
			Over: extent(label+" over", 1), Warmup: extent(label+" warmup", 0),
		}
	}
	o := &s.Options
	o.Lambda, o.Gain = schedule("lambda", 0.99), schedule("gain", 3)
	if rapid.Bool().Draw(t, "half-life") {
		o.Gamma = Gamma{HalfLife: extent("half-life", 1)}
	}
	if o.Placebo == PlaceboWithin { // a shuffle has no second definition
		o.Placebo = PlaceboOff
	}
	s.StageSteps = rapid.IntRange(1, 12).Draw(t, "steps")
	s.Advantage.MinStd = rapid.SampledFrom([]float64{1e-3, 0.2137, 0.4713}).Draw(t, "min_std") // no draw lies on them
	return s
}

// Runs of several batches agree with the second reading of the definitions,
// interrupted and resumed through JSON after any of them.
func TestRunsAgreeWithTheDefinitions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		setup := drawRun(t)
		s, err := NewShaper(setup)
		if err != nil {
			t.Fatalf("setup: %v", err)
		}
		ref := &reference{setup: setup}
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			batch := rapid.Custom(drawBatch).Draw(t, "batch")
			for q := range batch.Groups {
				for i := range batch.Groups[q].Traces {
					batch.Groups[q].Traces[i].Penalty = rapid.SampledFrom([]float64{0, 0.03, -0.2}).Draw(t, "penalty")
				}
			}
			got, want := shape(t, s, batch), ref.step(batch)
			at := 0
			for q, g := range got.Groups {
				for i, x := range g.Traces {
					w := want[at]
					at++
					tol := 1e-9 * math.Max(1, math.Abs(w.shaped))
					if math.Abs(x.A-w.a) > tol || math.Abs(x.Omega-w.omega) > 1e-9 || math.Abs(x.Shaped-w.shaped) > tol {
						t.Fatalf("s %d group %d trace %d: A %v, omega %v, A' %v, want %v, %v, %v", got.Step, q, i, x.A, x.Omega, x.Shaped, w.a, w.omega, w.shaped)
					}
				}
			}
			near(t, "next tau", got.NextTau, ref.tau, 1e-9)
			near(t, "next sigma", got.NextSigma, ref.sigma, 1e-9)
			if rapid.Bool().Draw(t, "resume") {
				s = resumed(t, s, setup)
			}
		}
	})
}

// resumed saves the state as a checkpoint does and goes on with a new shaper.
func resumed(t tb, s *Shaper, setup Setup) *Shaper {
	t.Helper()
	document, err := json.Marshal(s.State())
	if err != nil {
		t.Fatalf("save: %v", err)
	}
	var state State
	if err := json.Unmarshal(document, &state); err != nil {
		t.Fatalf("load: %v", err)
	}
	fresh, err := NewShaper(setup)
	if err != nil {
		t.Fatalf("setup: %v", err)
	}
	if err := fresh.Restore(state); err != nil {
		t.Fatalf("restore: %v", err)
	}
	return fresh
}
