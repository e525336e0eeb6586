package trainertest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// Patience is the longest that one test of the suite waits for anything that
// must happen. It is generous: no test passes by reaching it.
const Patience = 10 * time.Minute

// Trainer is a backend and the keeper of its weights, usually one value.
type Trainer struct {
	trainer.Backend
	trainer.Keeper
}

// Setup is what the suite runs against.
type Setup struct {
	// Open returns a trainer that no stage was begun on, as a process just
	// started would. It is called several times in one test, where the earlier
	// trainer was closed by the suite; whatever else must end is registered with
	// t.Cleanup.
	Open func(t *testing.T) Trainer
	// Model is a Hugging Face directory that a stage may start from, and Digest
	// the SHA-256 over its weights.
	Model, Digest string
	// Groups returns the groups of optimizer step n, the same at every call: at
	// least 3, of at least 2 traces, images where the model has any, without
	// rollout log-probabilities. Default: bytes, for [Scripted].
	Groups func(step int) []trainer.Group
	// BadToken is an id that the model does not have. Default 1 << 30.
	BadToken int32
	// Ranks of the plans. Default 1.
	Ranks int
	// Tolerance is how much loss and gradient norm may differ, relatively,
	// between two plans of one batch. Default 1e-5.
	Tolerance float64
	// LearningRate of the steps. Default 1e-3.
	LearningRate float64
	// AllowLeaks leaves goroutines unchecked.
	AllowLeaks bool
}

// Test is one entry of the suite.
type Test struct {
	Name string
	Run  func(t *testing.T, s Setup)
}

// Tests is the table of the conformance suite.
func Tests() []Test {
	return []Test{
		{"nothing works before begin", testBeforeBegin},
		{"begin refuses a model that is not there", testNoModel},
		{"scores have the shape of the batch", testScores},
		{"reference equals old at the start", testReference},
		{"a step raises what it rewards", testStepLearns},
		{"a skipped or repeated step is refused", testStepOrder},
		{"several batches are loaded before the first step", testSeveralBatches},
		{"a lower incarnation is refused", testIncarnation},
		{"resume equals unbroken", testResume},
		{"NaN is refused and changes nothing", testNaN},
		{"zero advantage changes nothing but by decay", testZeroAdvantage},
		{"same inputs give the same bits", testSameBits},
		{"published and saved digests agree", testDigests},
		{"save snapshots before it returns", testSnapshot},
		{"an offer stays until the next but one", testOfferFiles},
		{"an unknown token refuses its group by name", testUnknownToken},
		{"the plan does not change the update", testPlan},
		{"advantages of another shape are refused", testAdvantageShape},
	}
}

// Run runs every test of the suite and checks that no goroutine outlives it.
func Run(t *testing.T, s Setup) {
	if s.Groups == nil {
		s.Groups = Groups
	}
	if s.BadToken == 0 {
		s.BadToken = 1 << 30
	}
	s.Ranks = max(s.Ranks, 1)
	s.Tolerance = or(s.Tolerance, 1e-5)
	s.LearningRate = or(s.LearningRate, 1e-3)
	for _, test := range Tests() {
		t.Run(test.Name, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			t.Cleanup(func() {
				if !s.AllowLeaks {
					goleak.VerifyNone(t, before)
				}
			})
			test.Run(t, s)
		})
	}
}

// Groups is the default of Setup.Groups.
func Groups(step int) []trainer.Group {
	groups := make([]trainer.Group, 4)
	for q := range groups {
		groups[q] = trainer.Group{ID: fmt.Sprintf("s%d-g%d", step, q), Prompt: []int32{int32(step % 100), int32(q), 65}}
		for k := range 3 {
			var s trainer.Sequence
			for i := range 2 + (step+q*2+k)%5 {
				s.Tokens = append(s.Tokens, int32((step*31+q*17+k*7+i*3)%256))
			}
			s.Tokens = append(s.Tokens, EOS)
			groups[q].Traces = append(groups[q].Traces, s)
		}
	}
	return groups
}

// desk is a trainer at work in one test.
type desk struct {
	t *testing.T
	s Setup
	Trainer
	ctx context.Context
}

// open starts a trainer.
func open(t *testing.T, s Setup) *desk {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return &desk{t: t, s: s, Trainer: s.Open(t), ctx: ctx}
}

// end closes the trainer.
func (d *desk) end() {
	d.t.Helper()
	if err := d.Close(); err != nil {
		d.t.Errorf("close: %v", err)
	}
}

func (d *desk) stage() trainer.Stage {
	return trainer.Stage{Incarnation: 3, Name: "rl", Kind: trainer.RL, Model: d.s.Model, Seed: 11}
}

// begin begins a stage, which change may alter.
func (d *desk) begin(change func(*trainer.Stage)) {
	d.t.Helper()
	stage := d.stage()
	if change != nil {
		change(&stage)
	}
	if err := d.Begin(d.ctx, stage); err != nil {
		d.t.Fatalf("begin: %v", err)
	}
}

// batch is the batch of a step under a plan of at most budget tokens.
func (d *desk) batch(step, budget int) trainer.Batch {
	d.t.Helper()
	groups := d.s.Groups(step)
	plan, err := trainer.NewPlan(groups, d.s.Ranks, budget)
	if err != nil {
		d.t.Fatal(err)
	}
	return trainer.Batch{Step: step, Groups: groups, Plan: plan}
}

func (d *desk) load(b trainer.Batch) {
	d.t.Helper()
	if err := d.Load(d.ctx, b); err != nil {
		d.t.Fatalf("load of step %d: %v", b.Step, err)
	}
}

func (d *desk) score(step int) trainer.Scores {
	d.t.Helper()
	scores, err := d.Score(d.ctx, step, trainer.ScoreOptions{Temperature: 1})
	if err != nil {
		d.t.Fatalf("score of step %d: %v", step, err)
	}
	return scores
}

// advantages of a batch: positive and negative, different for every trace.
func (d *desk) advantages(b trainer.Batch) trainer.Advantages {
	a := trainer.Advantages{Options: trainer.StepOptions{
		Loss: trainer.PPO, ClipLow: 0.2, ClipHigh: 0.2, Aggregation: trainer.TokenMean, Temperature: 1,
		LearningRate: d.s.LearningRate, GradClip: 1, Denominators: trainer.CountDenominators(b.Groups, 64, nil),
	}}
	for q, g := range b.Groups {
		rows := make([][]float32, len(g.Traces))
		for k := range rows {
			rows[k] = []float32{float32(math.Sin(float64(b.Step*29 + q*7 + k*3)))}
		}
		a.Values = append(a.Values, rows)
	}
	return a
}

func (d *desk) step(n int, a trainer.Advantages) trainer.Report {
	d.t.Helper()
	r, err := d.Step(d.ctx, n, a)
	if err != nil {
		d.t.Fatalf("step %d: %v", n, err)
	}
	if r.Step != n {
		d.t.Errorf("report of step %d says step %d", n, r.Step)
	}
	return r
}

// train loads, scores and applies steps from to to.
func (d *desk) train(from, to int) (last trainer.Report) {
	d.t.Helper()
	for n := from; n <= to; n++ {
		b := d.batch(n, 0)
		d.load(b)
		d.score(n)
		last = d.step(n, d.advantages(b))
	}
	return last
}

// digest publishes the weights as version and returns their digest.
func (d *desk) digest(version int) string {
	d.t.Helper()
	return d.publish(version).Policy.Digest
}

func (d *desk) publish(version int) rollout.Offer {
	d.t.Helper()
	policy := rollout.Policy{Incarnation: 3, Version: version}
	offer, err := d.Publish(d.ctx, policy)
	if err != nil {
		d.t.Fatalf("publish of version %d: %v", version, err)
	}
	if offer.Policy.Version != version || offer.Policy.Incarnation != 3 || len(offer.Policy.Digest) != 64 {
		d.t.Errorf("offer is of policy %+v, want version %d of incarnation 3 and a SHA-256", offer.Policy, version)
	}
	return offer
}

// save saves below dir and waits until it is durable.
func (d *desk) save(dir string) trainer.Saved {
	d.t.Helper()
	pending, err := d.Save(d.ctx, dir)
	if err != nil {
		d.t.Fatalf("save: %v", err)
	}
	saved, err := pending.Wait(d.ctx)
	if err != nil {
		d.t.Fatalf("save, wait: %v", err)
	}
	return saved
}

// digestAs publishes as version of an incarnation and returns the digest.
func (d *desk) digestAs(incarnation uint64, version int) string {
	d.t.Helper()
	offer, err := d.Publish(d.ctx, rollout.Policy{Incarnation: incarnation, Version: version})
	if err != nil {
		d.t.Fatalf("publish of version %d: %v", version, err)
	}
	return offer.Policy.Digest
}

// flat lays values end to end.
func flat(values [][][]float32) []float32 {
	var out []float32
	for _, rows := range values {
		for _, row := range rows {
			out = append(out, row...)
		}
	}
	return out
}

func bitwise(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }

// far says whether a and b differ by more than tolerance of the larger.
func far(a, b, tolerance float64) bool {
	return math.Abs(a-b) > tolerance*math.Max(math.Max(math.Abs(a), math.Abs(b)), 1e-6)
}

// close32 says whether a and b are equal within tolerance, absolutely.
func close32(a, b []float32, tolerance float64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if math.Abs(float64(a[i])-float64(b[i])) > tolerance {
			return false
		}
	}
	return true
}

// foreignDigest is the SHA-256 of text: a digest that no weights have.
func foreignDigest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
