package trainertest

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

func testBeforeBegin(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	if err := d.Load(d.ctx, d.batch(1, 0)); err == nil {
		t.Error("load before begin: no error")
	}
	if _, err := d.Score(d.ctx, 1, trainer.ScoreOptions{Temperature: 1}); err == nil {
		t.Error("score before begin: no error")
	}
	if _, err := d.Step(d.ctx, 1, d.advantages(d.batch(1, 0))); err == nil {
		t.Error("step before begin: no error")
	}
	if _, err := d.Publish(d.ctx, rollout.Policy{Incarnation: 3}); err == nil {
		t.Error("publish before begin: no error")
	}
	if _, err := d.Save(d.ctx, t.TempDir()); err == nil {
		t.Error("save before begin: no error")
	}
}

func testNoModel(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	for name, change := range map[string]func(*trainer.Stage){
		"model":  func(g *trainer.Stage) { g.Model = filepath.Join(t.TempDir(), "nothing") },
		"resume": func(g *trainer.Stage) { g.Resume = filepath.Join(t.TempDir(), "nothing") },
	} {
		stage := d.stage()
		change(&stage)
		if err := d.Begin(d.ctx, stage); err == nil {
			t.Errorf("begin with a %s that is not there: no error", name)
		}
	}
	d.begin(nil)
	d.train(1, 1)
}

func testScores(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	b := d.batch(1, 0)
	d.load(b)
	scores := d.score(1)
	if scores.Reference != nil {
		t.Error("reference log-probabilities without a reference")
	}
	shaped(t, "old", b, scores.Old, func(x float64) bool { return x <= 1e-6 })
	shaped(t, "entropy", b, scores.Entropy, func(x float64) bool { return x >= -1e-5 })
	again := d.score(1)
	if !slices.EqualFunc(flat(scores.Old), flat(again.Old), bitwise) || !slices.EqualFunc(flat(scores.Entropy), flat(again.Entropy), bitwise) {
		t.Error("scoring a batch twice gave other bits")
	}
	if _, err := d.Score(d.ctx, 2, trainer.ScoreOptions{Temperature: 1}); err == nil {
		t.Error("score of a step that was not loaded: no error")
	}
}

// shaped fails unless values has one good number a response token of b.
func shaped(t *testing.T, name string, b trainer.Batch, values [][][]float32, good func(float64) bool) {
	t.Helper()
	if len(values) != len(b.Groups) {
		t.Fatalf("%s: %d groups, want %d", name, len(values), len(b.Groups))
	}
	for q, g := range b.Groups {
		if len(values[q]) != len(g.Traces) {
			t.Fatalf("%s of group %d: %d traces, want %d", name, q, len(values[q]), len(g.Traces))
		}
		for k, trace := range g.Traces {
			if len(values[q][k]) != len(trace.Tokens) {
				t.Fatalf("%s of group %d trace %d: %d tokens, want %d", name, q, k, len(values[q][k]), len(trace.Tokens))
			}
			for i, x := range values[q][k] {
				if v := float64(x); math.IsNaN(v) || math.IsInf(v, 0) || !good(v) {
					t.Errorf("%s of group %d trace %d token %d is %v", name, q, k, i, x)
				}
			}
		}
	}
}

func testReference(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	stage := d.stage()
	stage.Reference = &trainer.Reference{Path: s.Model, Digest: foreignDigest("no such weights")}
	if err := d.Begin(d.ctx, stage); err == nil {
		t.Error("a reference of another digest was taken")
	}
	d.begin(func(g *trainer.Stage) { g.Reference = &trainer.Reference{Path: s.Model, Digest: s.Digest} })
	b := d.batch(1, 0)
	d.load(b)
	first := d.score(1)
	shaped(t, "reference", b, first.Reference, func(x float64) bool { return x <= 1e-6 })
	if !close32(flat(first.Old), flat(first.Reference), 1e-6) {
		t.Error("reference differs from old under the same weights")
	}
	a := d.advantages(b)
	a.Options.KL = trainer.KL{Kind: trainer.K3, Coef: 0.1}
	d.step(1, a)
	d.load(d.batch(2, 0))
	d.score(2)
	d.step(2, d.advantages(d.batch(2, 0)))
	repeat := d.batch(1, 0)
	repeat.Step = 3
	d.load(repeat)
	later := d.score(3)
	if !slices.EqualFunc(flat(first.Reference), flat(later.Reference), bitwise) {
		t.Error("the reference moved with the weights")
	}
	if slices.EqualFunc(flat(first.Old), flat(later.Old), bitwise) {
		t.Error("the weights did not move")
	}
}

func testStepLearns(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	mean := func(n int) float64 {
		sum, count := 0.0, 0
		for _, x := range flat(d.score(n).Old) {
			sum, count = sum+float64(x), count+1
		}
		return sum / float64(count)
	}
	first := 0.0
	for n := 1; n <= 6; n++ {
		b := d.batch(1, 0)
		b.Step = n
		d.load(b)
		if n == 1 {
			first = mean(n)
		}
		a := d.advantages(b)
		a.Options.Loss = trainer.NLL
		for _, rows := range a.Values {
			for _, row := range rows {
				row[0] = 1
			}
		}
		r := d.step(n, a)
		if want := trainer.CountDenominators(b.Groups, 64, nil).Tokens; r.Tokens != want || r.GradNorm <= 0 {
			t.Errorf("report of step %d has %d tokens and gradient norm %v, want %d and more than 0", n, r.Tokens, r.GradNorm, want)
		}
	}
	b := d.batch(1, 0)
	b.Step = 7
	d.load(b)
	if last := mean(7); last <= first {
		t.Errorf("mean log-probability went from %v to %v", first, last)
	}
}

func testStepOrder(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	var order *trainer.StepOrderError
	if err := d.Load(d.ctx, d.batch(2, 0)); !errors.As(err, &order) {
		t.Errorf("load of step 2 first: %v, want a *StepOrderError", err)
	}
	d.train(1, 2)
	before := d.digest(0)
	for _, n := range []int{2, 4} {
		if _, err := d.Step(d.ctx, n, d.advantages(d.batch(n, 0))); !errors.As(err, &order) {
			t.Errorf("step %d after step 2: %v, want a *StepOrderError", n, err)
		} else if order.Have != 2 || order.Got != n {
			t.Errorf("step %d after step 2: have %d, got %d", n, order.Have, order.Got)
		}
	}
	if d.digest(1) != before {
		t.Error("a refused step changed the weights")
	}
	d.train(3, 3)
}

func testSeveralBatches(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	batches := []trainer.Batch{d.batch(1, 0), d.batch(2, 0)}
	for _, b := range batches {
		d.load(b)
	}
	second := d.score(2)
	d.score(1)
	d.step(1, d.advantages(batches[0]))
	// Old log-probabilities stay those of the batch's start.
	d.step(2, d.advantages(batches[1]))
	repeat := d.batch(2, 0)
	repeat.Step = 3
	d.load(repeat)
	if slices.EqualFunc(flat(second.Old), flat(d.score(3).Old), bitwise) {
		t.Error("two steps did not move the weights")
	}
}

func testIncarnation(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	d.train(1, 1)
	before := d.digest(0)
	stage := d.stage()
	stage.Incarnation = 2
	if err := d.Begin(d.ctx, stage); err == nil {
		t.Error("begin of incarnation 2 after 3: no error")
	}
	if d.digest(1) != before {
		t.Error("a refused begin changed the weights")
	}
	d.train(2, 2)
	stage.Incarnation = 4
	if err := d.Begin(d.ctx, stage); err != nil {
		t.Fatalf("begin of incarnation 4 after 3: %v", err)
	}
	d.train(1, 1)
}

func testResume(t *testing.T, s Setup) {
	dir := t.TempDir()
	whole := open(t, s)
	whole.begin(nil)
	whole.train(1, 2)
	saved := whole.save(dir)
	if saved.Step != 2 || saved.Policy == "" {
		t.Errorf("saved %+v, want step 2 and a policy directory", saved)
	}
	want := whole.train(3, 5)
	digest := whole.digest(5)
	whole.end()

	d := open(t, s)
	defer d.end()
	stage := d.stage()
	stage.Resume, stage.Step, stage.Incarnation = dir, 3, 4
	if err := d.Begin(d.ctx, stage); err == nil {
		t.Error("a checkpoint of step 2 was taken for step 3")
	}
	d.begin(func(g *trainer.Stage) { g.Resume, g.Step, g.Incarnation = dir, 2, 4 })
	got := d.train(3, 5)
	if x := d.digestAs(4, 5); x != digest {
		t.Errorf("resumed run ended with weights %s, unbroken with %s", x, digest)
	}
	if got.Loss != want.Loss || got.GradNorm != want.GradNorm {
		t.Errorf("last report after resume: loss %v, norm %v, want %v, %v", got.Loss, got.GradNorm, want.Loss, want.GradNorm)
	}
}

func testNaN(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	d.train(1, 1)
	before := d.digest(0)
	b := d.batch(2, 0)
	d.load(b)
	d.score(2)
	a := d.advantages(b)
	a.Values[1][0][0] = float32(math.NaN())
	_, err := d.Step(d.ctx, 2, a)
	var bad *trainer.BadStepError
	if !errors.As(err, &bad) || bad.Step != 2 {
		t.Fatalf("step with NaN: %v, want a *BadStepError of step 2", err)
	}
	if d.digest(1) != before {
		t.Error("a refused step changed the weights")
	}
	d.train(3, 3) // the step counts as done
}

func testZeroAdvantage(t *testing.T, s Setup) {
	for _, decay := range []float64{0, 0.5} {
		d := open(t, s)
		d.begin(func(g *trainer.Stage) { g.Optimizer.WeightDecay = decay })
		before := d.digest(0)
		b := d.batch(1, 0)
		d.load(b)
		d.score(1)
		a := d.advantages(b)
		for _, rows := range a.Values {
			for _, row := range rows {
				row[0] = 0
			}
		}
		d.step(1, a)
		if moved := d.digest(1) != before; moved != (decay > 0) {
			t.Errorf("weight decay %v: weights moved is %v", decay, moved)
		}
		d.end()
	}
}

func testSameBits(t *testing.T, s Setup) {
	var digests [2]string
	var reports [2]trainer.Report
	for i := range digests {
		d := open(t, s)
		d.begin(nil)
		reports[i] = d.train(1, 3)
		digests[i] = d.digest(3)
		d.end()
	}
	if digests[0] != digests[1] || reports[0].Loss != reports[1].Loss {
		t.Errorf("two runs gave %s, loss %v, and %s, loss %v", digests[0], reports[0].Loss, digests[1], reports[1].Loss)
	}
}

func testDigests(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	if got := d.digest(0); got != s.Digest {
		t.Errorf("weights just begun have digest %s, the model's is %s", got, s.Digest)
	}
	d.train(1, 1)
	dir := t.TempDir()
	saved := d.save(dir)
	if got := d.digest(1); got != saved.Digest || got == s.Digest {
		t.Errorf("published %s, saved %s, started from %s", got, saved.Digest, s.Digest)
	}
	// What was saved is a model that another stage can start from.
	d.begin(func(g *trainer.Stage) { g.Model, g.Step = filepath.Join(dir, saved.Policy), 1 })
	if got := d.digest(0); got != saved.Digest {
		t.Errorf("a stage that starts from the saved policy holds %s, want %s", got, saved.Digest)
	}
}

func testSnapshot(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	d.train(1, 1)
	before := d.digest(1)
	dir := t.TempDir()
	pending, err := d.Save(d.ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	d.train(2, 2)
	saved, err := pending.Wait(d.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if saved.Digest != before || saved.Step != 1 {
		t.Errorf("saved step %d with %s, want step 1 with %s", saved.Step, saved.Digest, before)
	}
	d.begin(func(g *trainer.Stage) { g.Resume, g.Step = dir, 1 })
	if got := d.digest(1); got != before {
		t.Errorf("resumed from the snapshot with %s, want %s", got, before)
	}
}

func testOfferFiles(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	first := d.publish(0)
	if first.Transport != rollout.ByDirectory {
		return // nothing lies on a disk
	}
	d.train(1, 1)
	d.publish(1)
	if _, err := os.Stat(first.Path); err != nil {
		t.Errorf("the first offer is gone after the second: %v", err)
	}
}

func testUnknownToken(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	b := d.batch(1, 0)
	b.Groups[1].Traces[0].Tokens = append(slices.Clone(b.Groups[1].Traces[0].Tokens), s.BadToken)
	plan, err := trainer.NewPlan(b.Groups, s.Ranks, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.Plan = plan
	var refused *trainer.GroupError
	if err := d.Load(d.ctx, b); !errors.As(err, &refused) || refused.Group != b.Groups[1].ID {
		t.Fatalf("load with token %d: %v, want a *GroupError of %s", s.BadToken, err, b.Groups[1].ID)
	}
	d.train(1, 1) // the step can be loaded again without the group
}

func testPlan(t *testing.T, s Setup) {
	longest := 0
	for _, g := range s.Groups(1) {
		for _, trace := range g.Traces {
			longest = max(longest, len(g.Prompt)+len(trace.Tokens))
		}
	}
	var reports []trainer.Report
	var scores [][]float32
	for _, budget := range []int{0, 3 * longest, longest} {
		d := open(t, s)
		d.begin(nil)
		b := d.batch(1, budget)
		d.load(b)
		d.score(1)
		reports = append(reports, d.step(1, d.advantages(b)))
		next := d.batch(2, budget)
		d.load(next)
		scores = append(scores, flat(d.score(2).Old))
		d.end()
	}
	for i := 1; i < len(reports); i++ {
		a, b := reports[0], reports[i]
		if far(a.Loss, b.Loss, s.Tolerance) || far(a.GradNorm, b.GradNorm, s.Tolerance) || a.Tokens != b.Tokens {
			t.Errorf("plan %d: loss %v, norm %v, %d tokens, want %v, %v, %d", i, b.Loss, b.GradNorm, b.Tokens, a.Loss, a.GradNorm, a.Tokens)
		}
		if !close32(scores[0], scores[i], 1e-3) {
			t.Errorf("plan %d: the weights after the step differ", i)
		}
	}
}

func testAdvantageShape(t *testing.T, s Setup) {
	d := open(t, s)
	defer d.end()
	d.begin(nil)
	b := d.batch(1, 0)
	d.load(b)
	for name, spoil := range map[string]func(a *trainer.Advantages){
		"a group too few": func(a *trainer.Advantages) { a.Values = a.Values[1:] },
		"a trace too few": func(a *trainer.Advantages) { a.Values[0] = a.Values[0][1:] },
		"tokens too few":  func(a *trainer.Advantages) { a.Values[0][0] = make([]float32, len(b.Groups[0].Traces[0].Tokens)-1) },
	} {
		if len(b.Groups[0].Traces[0].Tokens) == 2 && name == "tokens too few" {
			t.Fatalf("the first trace of step 1 has 2 tokens: one too few would be one for the whole trace")
		}
		a := d.advantages(b)
		spoil(&a)
		if _, err := d.Step(d.ctx, 1, a); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	a := d.advantages(b)
	for q, g := range b.Groups {
		for k, trace := range g.Traces {
			row := make([]float32, len(trace.Tokens))
			for i := range row {
				row[i] = a.Values[q][k][0]
			}
			a.Values[q][k] = row
		}
	}
	d.step(1, a) // one for each token is as good as one for the trace
}
