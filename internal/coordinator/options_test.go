package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
	"github.com/uadt-train/uadt-train/uadt"
)

// calls is a trainer that notes what it is asked.
type calls struct {
	*trainertest.Scripted
	mu      sync.Mutex
	names   []string
	options []trainer.StepOptions
	values  [][][][]float32
	loaded  []trainer.Batch
	stages  []trainer.Stage
}

func (c *calls) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names = append(c.names, fmt.Sprintf(format, args...))
}

func (c *calls) Begin(ctx context.Context, s trainer.Stage) error {
	c.note("begin %s", s.Name)
	c.stages = append(c.stages, s)
	return c.Scripted.Begin(ctx, s)
}

func (c *calls) Load(ctx context.Context, b trainer.Batch) error {
	c.note("load %d", b.Step)
	c.loaded = append(c.loaded, b)
	return c.Scripted.Load(ctx, b)
}

func (c *calls) Score(ctx context.Context, n int, o trainer.ScoreOptions) (trainer.Scores, error) {
	c.note("score %d", n)
	return c.Scripted.Score(ctx, n, o)
}

func (c *calls) Step(ctx context.Context, n int, a trainer.Advantages) (trainer.Report, error) {
	c.note("step %d", n)
	c.options = append(c.options, a.Options)
	c.values = append(c.values, a.Values)
	return c.Scripted.Step(ctx, n, a)
}

func (c *calls) Publish(ctx context.Context, p rollout.Policy) (rollout.Offer, error) {
	c.note("publish %d", p.Version)
	return c.Scripted.Publish(ctx, p)
}

// watched makes a kit whose trainer is noted.
func watched(t *testing.T, change func(*kit, *trainertest.Script)) (*kit, *calls) {
	t.Helper()
	k := mustKit(t, t.TempDir(), 1, change)
	c := &calls{Scripted: k.trainer}
	k.options.Parts.Backend, k.options.Parts.Keeper = c, c
	return k, c
}

// TestOrderOfCalls: every batch of a step is loaded and scored before the first
// of them is stepped, and the weights go out after the last.
func TestOrderOfCalls(t *testing.T) {
	k, c := watched(t, func(k *kit, _ *trainertest.Script) {
		k.options.Stages[0].Steps, k.options.RL.Updates = 2, 2
	})
	k.finish(t)
	want := "begin rl, publish 0, load 1, load 2, score 1, score 2, step 1, step 2, publish 1, load 3, load 4, score 3, score 4, step 3, step 4, publish 2"
	if got := strings.Join(c.names, ", "); got != want {
		t.Errorf("calls\n got %s\nwant %s", got, want)
	}
	for i, b := range c.loaded {
		if len(b.Groups) != 2 || b.Groups[0].ID != fmt.Sprintf("rl-%d-%d", i/2+1, i%2*2) {
			t.Errorf("update %d has %d groups from %s", b.Step, len(b.Groups), b.Groups[0].ID)
		}
	}
}

// TestScoreIsSkippedWhereItMay be.
func TestScoreIsSkippedWhereItMay(t *testing.T) {
	tests := []struct {
		name   string
		change func(rl *RL)
		scored bool
	}{
		{"exact", func(*RL) {}, true},
		{"surprisal", func(rl *RL) { rl.UADT.Entropy = uadt.Surprisal }, false},
		{"top-k", func(rl *RL) { rl.UADT.Entropy = uadt.TopK(20) }, false},
		{"surprisal and KL", func(rl *RL) { rl.UADT.Entropy, rl.Loss.KL.Kind = uadt.Surprisal, trainer.K3 }, true},
		{"surprisal and KL in the reward", func(rl *RL) { rl.UADT.Entropy, rl.RewardKL = uadt.Surprisal, 0.1 }, true},
		{"surprisal and two updates", func(rl *RL) { rl.UADT.Entropy, rl.Updates = uadt.Surprisal, 2 }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			k, c := watched(t, func(k *kit, _ *trainertest.Script) {
				k.options.Stages[0].Steps = 2
				test.change(&k.options.RL)
			})
			k.finish(t)
			if got := slices.Contains(c.names, "score 1"); got != test.scored {
				t.Errorf("scored is %v, want %v", got, test.scored)
			}
			line, err := readLine(k.dir + "/metrics/step-0001.json")
			if err != nil {
				t.Fatal(err)
			}
			if line["entropy/estimator"] != string(k.options.RL.UADT.Entropy) {
				t.Errorf("estimator %v, want %s", line["entropy/estimator"], k.options.RL.UADT.Entropy)
			}
		})
	}
}

// TestStepOptions checks what the coordinator fills in.
func TestStepOptions(t *testing.T) {
	k, c := watched(t, func(k *kit, _ *trainertest.Script) {
		s := &k.options.Stages[0]
		s.Steps, s.GradClip, s.Decay, s.Warmup, s.LearningRate = 4, 0.5, trainer.DecayLinear, 2, 0.01
		k.options.RL.Sampling.Temperature, k.options.RL.Sampling.Banned = 0.9, []int32{999}
		k.options.RL.Loss.Correction = trainer.Correction{Level: "token", Mode: "truncate", Upper: 2}
		k.options.RL.MaskTruncated = true
	})
	k.finish(t)
	for i, want := range []float64{0.005, 0.01, 0.01, 0.005} {
		o := c.options[i]
		if math.Abs(o.LearningRate-want) > 1e-12 {
			t.Errorf("learning rate of step %d is %v, want %v", i+1, o.LearningRate, want)
		}
		if o.GradClip != 0.5 || o.Temperature != 0.9 || !slices.Equal(o.Banned, []int32{999}) || o.Correction.Level != "token" {
			t.Errorf("options of step %d: %+v", i+1, o)
		}
		if want := trainer.CountDenominators(c.loaded[i].Groups, 120, nil); o.Denominators != want {
			t.Errorf("denominators of step %d: %+v, want %+v", i+1, o.Denominators, want)
		}
	}
	masked := 0
	for _, b := range c.loaded {
		for _, g := range b.Groups {
			if len(g.Images) != 1 {
				t.Errorf("group %s has %d images, want 1", g.ID, len(g.Images))
			}
			for _, s := range g.Traces {
				if s.Mask != nil {
					masked++
					if len(s.Tokens) != 120 || s.Trained() != 0 {
						t.Errorf("a trace of %d tokens is masked down to %d", len(s.Tokens), s.Trained())
					}
				}
			}
		}
	}
	if masked == 0 {
		t.Error("no truncated trace was masked")
	}
}

// TestInformativeDenominators leaves the groups without a gradient out.
func TestInformativeDenominators(t *testing.T) {
	k, c := watched(t, func(k *kit, _ *trainertest.Script) {
		k.options.RL.InformativeOnly = true
		k.options.RL.Advantage.MinStd = 1e6 // none is informative
	})
	k.finish(t)
	for _, o := range c.options {
		if o.Denominators.Tokens != 1 || o.Denominators.Sequences != 1 {
			t.Errorf("denominators %+v of a batch without gradient, want 1 and 1", o.Denominators)
		}
	}
}

// TestRewardKL subtracts coef * sum(old - ref) for the advantage only.
func TestRewardKL(t *testing.T) {
	run := func(coef float64) (*calls, *kit) {
		k, c := watched(t, func(k *kit, _ *trainertest.Script) {
			k.options.Stages[0].Steps = 2
			k.options.RL.RewardKL = coef
			k.options.RL.UADT.Rule = "none"
		})
		k.finish(t)
		return c, k
	}
	with, k := run(0.5)
	without, _ := run(0)
	if with.stages[0].Reference == nil || without.stages[0].Reference != nil {
		t.Errorf("references %v and %v, want one with KL and none without", with.stages[0].Reference, without.stages[0].Reference)
	}
	if fmt.Sprint(with.values[0]) != fmt.Sprint(without.values[0]) {
		t.Error("under the reference itself the penalty is not 0")
	}
	if fmt.Sprint(with.values[1]) == fmt.Sprint(without.values[1]) {
		t.Error("away from the reference the penalty changes nothing")
	}
	rows, err := k.store.ledgerRows(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if r, ok := row["reward"].(float64); ok && r != 0 && r != 0.5 && r != 1.5 && r != 1 {
			t.Errorf("reward in the ledger is %v: the penalty must not be in it", r)
		}
	}
}

// TestStagesFollowEachOther: the second stage starts from the weights of the
// first, which is its reference, and update numbers go on.
func TestStagesFollowEachOther(t *testing.T) {
	k, c := watched(t, full(0))
	k.finish(t)
	if len(c.stages) != 2 {
		t.Fatalf("%d stages were begun", len(c.stages))
	}
	sft, rl := c.stages[0], c.stages[1]
	if sft.Reference != nil || sft.Step != 0 || rl.Step != 3 || rl.Resume != "" {
		t.Errorf("stages %+v and %+v", sft, rl)
	}
	if rl.Reference == nil || rl.Reference.Path != rl.Model || rl.Reference.Digest == trainertest.InitialDigest() {
		t.Errorf("reference of the rl stage %+v, model %s", rl.Reference, rl.Model)
	}
	if b := c.loaded[0]; len(b.Groups) != 3 || len(b.Groups[0].Traces) != 1 || c.options[0].Loss != trainer.NLL || c.values[0][0][0][0] != 1 {
		t.Errorf("first sft batch %+v with %+v", b.Groups[0], c.options[0])
	}
}

// TestTwoRLStages: the fleet is never offered an older version than it has, and
// tau starts anew unless it is to be carried.
func TestTwoRLStages(t *testing.T) {
	run := func(carry bool) (*kit, Result) {
		k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
			first, second := k.options.Stages[0], k.options.Stages[0]
			first.Steps, second.Steps, second.Name, second.Source = 2, 3, "rl2", &listSource{records: 7}
			k.options.Stages = []Stage{first, second}
			k.options.RL.UADT.Carry = carry
			k.options.RL.MaxStaleness = 1
		})
		return k, k.finish(t)
	}
	k, r := run(false)
	var versions []int
	for _, p := range k.fleet.Policies() {
		versions = append(versions, p.Version)
	}
	if want := []int{0, 3, 4}; !slices.Equal(versions, want) || r.Step != 5 {
		t.Errorf("versions %v went live in %d steps, want %v in 5", versions, r.Step, want)
	}
	tau := func(k *kit) any {
		line, err := readLine(k.dir + "/metrics/step-0003.json")
		if err != nil {
			t.Fatal(err)
		}
		return line["uadt/tau"]
	}
	carried, _ := run(true)
	if tau(k) == tau(carried) {
		t.Error("carrying tau over changes nothing")
	}
}

func TestAlarms(t *testing.T) {
	for name, test := range map[string]struct {
		score reward.Score
		alarm string
	}{
		"zero":    {reward.Score{}, "all_zero_reward"},
		"missing": {reward.Score{Missing: true}, "all_missing_reward"},
	} {
		t.Run(name, func(t *testing.T) {
			k := mustKit(t, t.TempDir(), 1, nil)
			k.options.Stages[0].Steps = 2
			k.options.Parts.Scorer = fixedScorer{score: test.score}
			k.finish(t)
			if n := k.events.alarms(test.alarm); n != 2 {
				t.Errorf("%d alarms %s in 2 steps", n, test.alarm)
			}
		})
	}
}

// fixedScorer gives every trace the same score, or waits until its time is up.
type fixedScorer struct {
	score reward.Score
	hang  bool
	err   error
}

func (s fixedScorer) Score(ctx context.Context, _ rollout.Question, _ rollout.Trace) (reward.Score, error) {
	if s.hang {
		<-ctx.Done()
		return reward.Score{}, ctx.Err()
	}
	return s.score, s.err
}

// TestScorerThatHangsOrFails makes the reward missing, never 0.
func TestScorerThatHangsOrFails(t *testing.T) {
	for name, scorer := range map[string]fixedScorer{
		"hangs":      {hang: true},
		"fails":      {err: errors.New("broken")},
		"not finite": {score: reward.Score{Total: math.NaN()}},
	} {
		t.Run(name, func(t *testing.T) {
			k := mustKit(t, t.TempDir(), 1, nil)
			k.options.Stages[0].Steps = 1
			k.options.Limits.Reward = 1 // a nanosecond
			k.options.Parts.Scorer = scorer
			k.finish(t)
			done := eventsOf[telemetry.StepDone](k.events)
			if m := done[0].Metrics; m["reward/missing"] != 1 || m["accuracy/train"] != 0 {
				t.Errorf("missing %v, accuracy %v, want all missing", m["reward/missing"], m["accuracy/train"])
			}
			if _, there := done[0].Metrics["reward/mean"]; there {
				t.Error("a mean of no rewards")
			}
		})
	}
}

// TestBadStepsStopTheRun: the run can be resumed; it stops at the same step
// again while the cause is there, and comes to its end once that is mended.
func TestBadStepsStopTheRun(t *testing.T) {
	dir := t.TempDir()
	incarnation := func(n uint64, bad ...int) *kit {
		return mustKit(t, dir, n, func(k *kit, s *trainertest.Script) {
			k.options.MaxBadSteps = 2
			s.Bad = bad
		})
	}
	k := incarnation(1, 1, 3, 4, 5)
	_, err := k.run(patient(t), t.Context())
	var bad *BadStepsError
	var last *trainer.BadStepError
	if !errors.As(err, &bad) || bad.Count != 2 || !errors.As(err, &last) || last.Step != 4 {
		t.Errorf("got %v, want a stop after steps 3 and 4", err)
	}
	if n := k.events.alarms("bad_step"); n != 3 {
		t.Errorf("%d alarms, want 3", n)
	}
	if _, err := incarnation(2, 1, 3, 4, 5).run(patient(t), t.Context()); !errors.As(err, &last) || last.Step != 4 {
		t.Errorf("resumed with the cause still there: %v, want a stop at step 4", err)
	}
	mended := incarnation(3, 1)
	if result := mended.finish(t); result.Step != mended.options.Stages[0].Steps {
		t.Errorf("resumed and mended: ended at step %d, want %d", result.Step, mended.options.Stages[0].Steps)
	}
}
