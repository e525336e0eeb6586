package uadt

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
)

// The types below mirror testdata/shape_vectors.json, which make_vectors.py
// beside it writes from the definitions alone.
type vectorRun struct {
	Options vectorOptions
	Steps   []struct {
		Batch [][]vectorTrace
		Want  vectorWant
	}
}

type vectorOptions struct {
	Rule, Norm, Advantage, Level, Truncated, Placebo, Update string
	Recenter, Rescale                                        bool
	Gamma, Lambda, Gain, Kappa, Floor, Eps                   float64
	MinStd                                                   float64 `json:"min_std"`
}

type vectorTrace struct {
	Reward, Penalty                      float64
	Missing, Correct, Truncated, Aborted bool
	Length                               int
	Entropies                            []float32
	Span                                 []bool
}

type vectorWant struct {
	A, Omega, Shaped [][]float64
	Tau              float64
	NextTau          float64 `json:"next_tau"`
	NextSigma        float64 `json:"next_sigma"`
	Metrics          map[string]float64
}

func (o vectorOptions) setup() Setup {
	s := Setup{Options: DefaultOptions(), StageSteps: 10}
	s.Options.Rule, s.Options.Norm, s.Options.Level = o.Rule, Norm(o.Norm), Level(o.Level)
	s.Options.Truncated, s.Options.Placebo, s.Options.Update = Truncated(o.Truncated), Placebo(o.Placebo), Update(o.Update)
	s.Options.Recenter, s.Options.Rescale = o.Recenter, o.Rescale
	s.Options.Gamma, s.Options.Lambda, s.Options.Gain = Gamma{Value: o.Gamma}, Constant(o.Lambda), Constant(o.Gain)
	s.Options.Kappa, s.Options.Floor = o.Kappa, o.Floor
	s.Advantage = AdvantageOptions{Advantage: Baseline(o.Advantage), Eps: o.Eps, MinStd: o.MinStd}
	return s
}

func loadVectors(t *testing.T) []vectorRun {
	t.Helper()
	data, err := os.ReadFile("testdata/shape_vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var runs []vectorRun
	if err := json.Unmarshal(data, &runs); err != nil {
		t.Fatal(err)
	}
	return runs
}

func TestShapeAgreesWithIndependentVectors(t *testing.T) {
	const tol = 1e-9
	runs := loadVectors(t)
	compared := 0
	for n, run := range runs {
		s, err := NewShaper(run.Options.setup())
		if err != nil {
			t.Fatalf("run %d: %v", n, err)
		}
		for k, step := range run.Steps {
			var b Batch
			for q, g := range step.Batch {
				out := Group{ID: fmt.Sprint(q)}
				for _, x := range g {
					out.Traces = append(out.Traces, Trace{Reward: x.Reward, Penalty: x.Penalty, Missing: x.Missing, Correct: x.Correct,
						Truncated: x.Truncated, Aborted: x.Aborted, Length: x.Length, Entropies: x.Entropies, Span: x.Span})
				}
				b.Groups = append(b.Groups, out)
			}
			r := shape(t, s, b)
			where := fmt.Sprintf("run %d (%+v) step %d", n, run.Options, k)
			for q := range step.Batch {
				nears(t, where+" A", column(r, q, pickA), step.Want.A[q], tol)
				nears(t, where+" omega", column(r, q, pickOmega), step.Want.Omega[q], tol)
				nears(t, where+" A'", column(r, q, pickShaped), step.Want.Shaped[q], tol)
				compared += len(step.Want.Shaped[q])
			}
			near(t, where+" tau", r.Tau, step.Want.Tau, tol)
			near(t, where+" next tau", r.NextTau, step.Want.NextTau, tol)
			near(t, where+" next sigma", r.NextSigma, step.Want.NextSigma, tol)
			for name, want := range step.Want.Metrics {
				got, ok := r.Metrics[name]
				if !ok {
					t.Errorf("%s: metric %s is absent", where, name)
				}
				near(t, where+" "+name, got, want, tol)
			}
			for _, name := range []string{"uadt/mass_moved", "uadt/common_shift", "uadt/omega_mean"} {
				if _, want := step.Want.Metrics[name]; !want {
					absent(t, r, name)
				}
			}
			if t.Failed() {
				return // one disagreement is enough to read
			}
		}
	}
	if compared < 500 {
		t.Errorf("only %d traces compared", compared)
	}
}

// The vectors are only worth something if they cover every choice.
func TestVectorsCoverTheOptions(t *testing.T) {
	seen := map[string]bool{}
	for _, run := range loadVectors(t) {
		o := run.Options
		for _, v := range []string{o.Rule + "/" + o.Norm, o.Advantage, o.Level, o.Truncated, o.Placebo, o.Update,
			fmt.Sprint("recenter ", o.Recenter), fmt.Sprint("rescale ", o.Rescale), fmt.Sprint("kappa ", o.Kappa)} {
			seen[v] = true
		}
	}
	want := []string{"grpo", "dr_grpo", "rloo", "trace", "group", "include", "exclude", "off", "mean", "after", "before",
		"recenter true", "recenter false", "rescale true", "rescale false", "kappa 0", "kappa 2"}
	for _, rule := range ruleNames() {
		for _, norm := range []Norm{Diff, Rel, ZScore} {
			want = append(want, rule+"/"+string(norm))
		}
	}
	slices.Sort(want)
	for _, v := range want {
		if !seen[v] {
			t.Errorf("no vector has %s", v)
		}
	}
}
