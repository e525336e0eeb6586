package uadt

import "math"

// tb is what helpers need of *testing.T and of *rapid.T.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// near fails t unless got is within tol of want.
func near(t tb, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol) { // written so that NaN fails
		t.Errorf("%s = %.12g, want %.12g within %g", what, got, want, tol)
	}
}

// nears compares two slices element by element.
func nears(t tb, what string, got, want []float64, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values %v, want %d %v", what, len(got), got, len(want), want)
	}
	for i := range want {
		if !(math.Abs(got[i]-want[i]) <= tol) {
			t.Errorf("%s[%d] = %.12g, want %.12g within %g", what, i, got[i], want[i], tol)
		}
	}
}

// setup is the default setup after change.
func setup(change func(*Setup)) Setup {
	s := Setup{Options: DefaultOptions(), Advantage: DefaultAdvantageOptions(), StageSteps: 60, Seed: 7}
	if change != nil {
		change(&s)
	}
	return s
}

// shaper makes a shaper of the default setup after change.
func shaper(t tb, change func(*Setup)) *Shaper {
	t.Helper()
	s, err := NewShaper(setup(change))
	if err != nil {
		t.Fatalf("new shaper: %v", err)
	}
	return s
}

// shape shapes one batch that must be accepted.
func shape(t tb, s *Shaper, batch Batch) Result {
	t.Helper()
	r, err := s.Shape(batch)
	if err != nil {
		t.Fatalf("shape: %v", err)
	}
	return r
}

// group builds a group of length-10 traces with the given rewards and H. A
// reward of 1 is correct.
func group(id string, rewards, h []float64) Group {
	g := Group{ID: id}
	for i, r := range rewards {
		g.Traces = append(g.Traces, Trace{Reward: r, Correct: r == 1, Length: 10, H: h[i]})
	}
	return g
}

func batchOf(groups ...Group) Batch { return Batch{Groups: groups} }

// column picks one number from every trace of group q.
func column(r Result, q int, pick func(TraceResult) float64) []float64 {
	var out []float64
	for _, t := range r.Groups[q].Traces {
		out = append(out, pick(t))
	}
	return out
}

func pickA(t TraceResult) float64      { return t.A }
func pickShaped(t TraceResult) float64 { return t.Shaped }
func pickOmega(t TraceResult) float64  { return t.Omega }
func pickU(t TraceResult) float64      { return t.U }
func pickH(t TraceResult) float64      { return t.H }

// everything flattens one number of every trace of every group.
func everything(r Result, pick func(TraceResult) float64) []float64 {
	var out []float64
	for q := range r.Groups {
		out = append(out, column(r, q, pick)...)
	}
	return out
}

// absent fails t if the metric is there.
func absent(t tb, r Result, name string) {
	t.Helper()
	if v, ok := r.Metrics[name]; ok {
		t.Errorf("metric %s = %v, want it absent", name, v)
	}
}

// metric fails t unless the metric is there and near want.
func metric(t tb, r Result, name string, want float64) {
	t.Helper()
	v, ok := r.Metrics[name]
	if !ok {
		t.Errorf("metric %s is absent, want %g", name, want)
		return
	}
	near(t, name, v, want, 1e-12)
}

// alarmed says whether r raised the named alarm.
func alarmed(r Result, name string) bool {
	for _, a := range r.Alarms {
		if a.Name == name {
			return true
		}
	}
	return false
}
