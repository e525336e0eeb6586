package remote

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

var someStage = trainer.Stage{Incarnation: 7, Name: "rl", Kind: trainer.RL, Model: "model"}

func ok(int, request) reply { return reply{} }

// loadOne loads step 1 of the suite's groups.
func loadOne(t *testing.T, made *Trainer) ([]trainer.Group, error) {
	t.Helper()
	groups := trainertest.Groups(1)
	plan, err := trainer.NewPlan(groups, made.options.Ranks, 0)
	must(t, err)
	return groups, made.Load(t.Context(), trainer.Batch{Step: 1, Groups: groups, Plan: plan})
}

func stepOne(t *testing.T, made *Trainer, groups []trainer.Group) (trainer.Report, error) {
	t.Helper()
	return made.Step(t.Context(), 1, trainer.Advantages{Values: ones(groups), Options: trainer.StepOptions{
		Loss: trainer.PPO, Aggregation: trainer.TokenMean, Temperature: 1, LearningRate: 1e-3, Denominators: trainer.CountDenominators(groups, 64, nil)}})
}

func wantLost(t *testing.T, err error, rank int, words string) {
	t.Helper()
	var lost *LostError
	if !errors.As(err, &lost) || lost.Rank != rank || !strings.Contains(lost.Error(), words) {
		t.Fatalf("got %v, want a *LostError of rank %d with %q", err, rank, words)
	}
}

// A stage begins with a full set of one instance only, and says what is
// missing.
func TestBeginWaitsForAFullSet(t *testing.T) {
	k := newBus(t, "full")
	made, ranks := set(t, k, Options{Ranks: 2, Start: 300 * time.Millisecond}, ok)
	ranks[1].mu.Lock()
	ranks[1].instance = "two"
	ranks[1].mu.Unlock()
	err := made.Begin(t.Context(), someStage)
	var timeout *TimeoutError
	if !errors.As(err, &timeout) || !strings.Contains(err.Error(), "rank 1") {
		t.Fatalf("begin with ranks of two instances: %v", err)
	}
	ranks[1].mu.Lock()
	ranks[1].instance = "one"
	ranks[1].mu.Unlock()
	made.options.Start = time.Minute
	must(t, made.Begin(t.Context(), someStage))

	alone := newBus(t, "alone")
	other, _ := set(t, alone, Options{Ranks: 1, Start: 200 * time.Millisecond}, ok)
	other.options.Ranks = 2
	if err := other.Begin(t.Context(), someStage); err == nil || !strings.Contains(err.Error(), "rank 0 on here is one of 1 ranks, 2 are wanted") {
		t.Fatalf("begin with a set of another size: %v", err)
	}
}

// A coordinator that was held up while another took over cannot call the ranks
// back to itself: they would drop the state of the newer one.
func TestOlderCoordinatorCannotCallRanks(t *testing.T) {
	k := newBus(t, "older")
	newer, _ := set(t, k, Options{}, ok) // incarnation 7
	must(t, newer.Begin(t.Context(), someStage))
	_, err := New(t.Context(), Options{Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: 6}})
	if !errors.Is(err, bus.ErrSuperseded) || !strings.Contains(err.Error(), "is of incarnation 7 of run older, this one is 6") {
		t.Fatalf("got %v, want ErrSuperseded with both incarnations", err)
	}
	if _, err := loadOne(t, newer); err != nil { // its ranks are still its own
		t.Fatal(err)
	}
}

// A rank that falls silent, or whose place another process takes, ends the
// stage; Begin starts anew.
func TestALostRankEndsTheStage(t *testing.T) {
	k := newBus(t, "lost")
	hung := make(chan struct{})
	made, ranks := set(t, k, Options{Ranks: 2, Silence: 400 * time.Millisecond}, func(rank int, r request) reply {
		if r.name == "load" && rank == 1 {
			close(hung)
			return reply{none: true}
		}
		return reply{}
	})
	must(t, made.Begin(t.Context(), someStage))
	go func() {
		<-hung
		ranks[1].end()
	}()
	_, err := loadOne(t, made)
	wantLost(t, err, 1, "no heartbeat")
	if _, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7}); err == nil {
		t.Error("publish after the loss of a rank: no error")
	}
	startRank(t, k, &fakeRank{rank: 1, world: 2, instance: "new", handle: func(r request) reply { return ok(1, r) }})
	ranks[0].mu.Lock()
	ranks[0].instance = "new"
	ranks[0].mu.Unlock()
	must(t, made.Begin(t.Context(), someStage))
	if _, err := loadOne(t, made); err != nil {
		t.Fatal(err)
	}
	ranks[0].mu.Lock()
	ranks[0].instance = "newer"
	ranks[0].mu.Unlock()
	for err = nil; err == nil; {
		_, err = made.Score(t.Context(), 1, trainer.ScoreOptions{Temperature: 1})
		if errors.Is(err, ErrFrame) { // the fake rank's scores are empty
			made.mu.Lock()
			made.stage.broken = nil
			made.mu.Unlock()
			err = nil
		}
	}
	wantLost(t, err, 0, "another process took its place")
}

// A rank that hangs with its heart beating meets the deadline of the command.
func TestAHungCommandMeetsItsDeadline(t *testing.T) {
	k := newBus(t, "hung")
	made, _ := set(t, k, Options{}, func(_ int, r request) reply { return reply{none: r.name == "publish"} })
	must(t, made.Begin(t.Context(), someStage))
	made.options.Command = 200 * time.Millisecond
	_, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7})
	var timeout *TimeoutError
	if !errors.As(err, &timeout) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "publish on 1 of 1 trainer ranks") {
		t.Fatalf("publish: %v", err)
	}
	if _, err := made.Save(t.Context(), t.TempDir()); !errors.As(err, &timeout) {
		t.Errorf("save after a command that was given up: %v", err)
	}
	made.options.Command = time.Minute
	ctx, cancel := context.WithCancelCause(t.Context())
	must(t, made.Begin(t.Context(), someStage))
	stop := errors.New("stopped by the user")
	cancel(stop)
	if _, err := made.Publish(ctx, rollout.Policy{Incarnation: 7}); !errors.Is(err, stop) && !errors.Is(err, context.Canceled) {
		t.Errorf("publish of a caller that stopped: %v", err)
	}
}

// Typed errors of a rank are those of package trainer; what one rank refuses
// before anything is changed leaves the stage usable.
func TestRefusalsKeepTheirTypes(t *testing.T) {
	k := newBus(t, "refusals")
	refuse := map[string]*failure{}
	made, _ := set(t, k, Options{Ranks: 2}, func(rank int, r request) reply {
		if rank == 1 || r.name == "step" {
			return reply{err: refuse[r.name]}
		}
		return reply{}
	})
	must(t, made.Begin(t.Context(), someStage))
	refuse["load"] = &failure{Type: "GroupError", Group: "s1-g2", Reason: "39 image tokens"}
	_, err := loadOne(t, made)
	var group *trainer.GroupError
	if !errors.As(err, &group) || group.Group != "s1-g2" || !strings.Contains(err.Error(), "39 image tokens") {
		t.Fatalf("load: %v", err)
	}
	if _, err := made.Score(t.Context(), 1, trainer.ScoreOptions{Temperature: 1}); err == nil || !strings.Contains(err.Error(), "not loaded") {
		t.Errorf("score of a step that one rank refused: %v", err)
	}
	refuse["load"] = nil
	groups, err := loadOne(t, made)
	must(t, err)
	refuse["step"] = &failure{Type: "BadStepError", Step: 1, What: "loss", Groups: []string{"s1-g3", "s1-g0"}, Traces: []string{"s1-g3/1", "s1-g0/0"}}
	_, err = stepOne(t, made, groups)
	var bad *trainer.BadStepError
	if !errors.As(err, &bad) || strings.Join(bad.Groups, " ") != "s1-g0 s1-g3" || !strings.Contains(err.Error(), "s1-g0/0 s1-g3/1") || bad.What != "loss" {
		t.Fatalf("step: %v", err)
	}
	var order *trainer.StepOrderError
	if _, err := stepOne(t, made, groups); !errors.As(err, &order) || order.Have != 1 {
		t.Errorf("the bad step again: %v", err)
	}
	refuse["publish"] = &failure{Type: "CheckpointError", Message: "disk full"}
	var own *RankError
	if _, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7}); !errors.As(err, &own) || own.Rank != 1 || own.Type != "CheckpointError" {
		t.Errorf("publish: %v", err)
	}
}

// A step that succeeds on one rank and fails on the other leaves no set; so
// does an error that ends a rank.
func TestAHalfDoneStepEndsTheStage(t *testing.T) {
	k := newBus(t, "half")
	var fail failure
	made, _ := set(t, k, Options{Ranks: 2}, func(rank int, r request) reply {
		if r.name == "step" && rank == 1 {
			return reply{err: &fail}
		}
		return reply{body: rankReport{}}
	})
	for _, c := range []struct {
		fail  failure
		words string
	}{
		{failure{Type: "CommandError", Message: "no score"}, "step failed on it alone: no score"},
		{failure{Type: "OutOfMemoryError", Message: "tried to allocate"}, "OutOfMemoryError: tried to allocate"},
	} {
		fail = c.fail
		must(t, made.Begin(t.Context(), someStage))
		groups, err := loadOne(t, made)
		must(t, err)
		_, err = stepOne(t, made, groups)
		wantLost(t, err, 1, c.words)
		_, err = loadOne(t, made)
		wantLost(t, err, 1, c.words)
	}
}

// A rank that refuses a step while the other waits for it in a collective does
// not hold us for as long as the collective would.
func TestAStepThatHangsOnTheOthersIsGivenUp(t *testing.T) {
	k := newBus(t, "collective")
	made, _ := set(t, k, Options{Ranks: 2, Silence: 300 * time.Millisecond}, func(rank int, r request) reply {
		switch {
		case r.name == "step" && rank == 0:
			return reply{err: &failure{Type: "CommandError", Message: "no"}}
		case r.name == "step":
			return reply{none: true}
		}
		return reply{}
	})
	must(t, made.Begin(t.Context(), someStage))
	groups, err := loadOne(t, made)
	must(t, err)
	_, err = stepOne(t, made, groups)
	wantLost(t, err, 0, "hangs on another")
}

// Answers that are no answers are errors that say what is wrong.
func TestBadAnswers(t *testing.T) {
	k := newBus(t, "bad")
	var scores map[string]safetensors.Tensor
	report := rankReport{Sums: map[string]float64{"polcy": 1}}
	made, _ := set(t, k, Options{}, func(_ int, r request) reply {
		switch r.name {
		case "score":
			return reply{tensors: scores}
		case "step":
			return reply{body: report}
		case "publish":
			return reply{body: published{Path: "relative", Digest: "short"}}
		}
		return reply{}
	})
	begin := func() []trainer.Group {
		must(t, made.Begin(t.Context(), someStage))
		groups, err := loadOne(t, made)
		must(t, err)
		return groups
	}
	begin()
	for words, tensors := range map[string]map[string]safetensors.Tensor{
		"no tensor": {},
		"want F32":  {"old": safetensors.FromFloat32([]float32{1}, 1), "entropy": safetensors.FromFloat32([]float32{1}, 1)},
	} {
		scores = tensors
		if _, err := made.Score(t.Context(), 1, trainer.ScoreOptions{Temperature: 1}); !errors.Is(err, ErrFrame) || !strings.Contains(err.Error(), words) {
			t.Errorf("score: %v, want %q", err, words)
		}
		begin()
	}
	groups := begin()
	if _, err := stepOne(t, made, groups); !errors.Is(err, ErrFrame) || !strings.Contains(err.Error(), "polcy") {
		t.Errorf("step: %v", err)
	}
	begin()
	if _, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7}); !errors.Is(err, ErrFrame) {
		t.Errorf("publish: %v", err)
	}
}

// Reports of ranks add up to means over all of their tokens.
func TestReportsAddUp(t *testing.T) {
	answers := make([]answer, 2)
	for rank, body := range []string{
		`{"step":1,"grad_norm":2,"tokens":30,"sums":{"policy":0.5,"kl":0.1,"entropy":60,"behaviour":3,"reference":6,"low":3,"high":0,"gap_tokens":30,"gap_w":33,"gap_difference":3,"gap_outside":1},"maxima":{"gap_w_max":4},"seconds":{},"peak_bytes":7}`,
		`{"step":1,"grad_norm":2,"tokens":10,"sums":{"policy":0.25,"bonus":-0.05,"entropy":20,"dual":2,"clamped":4},"maxima":{},"seconds":{},"peak_bytes":9}`,
	} {
		answers[rank] = answer{Body: []byte(body), rank: rank}
	}
	r, err := merge(answers)
	must(t, err)
	for name, pair := range map[string][2]float64{
		"loss": {r.Loss, 0.8}, "policy": {r.PolicyLoss, 0.75}, "kl": {r.KLLoss, 0.1}, "entropy": {r.Entropy, 2}, "behaviour": {r.KLBehaviour, 3. / 40},
		"reference": {r.KLReference, 6. / 40}, "low": {r.ClipLow, 3. / 40}, "dual": {r.ClipDual, 2. / 40}, "clamped": {r.KLClamped, 0.1}, "norm": {r.GradNorm, 2},
		"gap mean": {r.Gap.WMean, 1.1}, "gap max": {r.Gap.WMax, 4}, "gap kl": {r.Gap.KL, 0.1}, "gap share": {r.Gap.Truncated, 1. / 30}, "peak": {float64(r.PeakBytes), 9},
	} {
		if math.Abs(pair[0]-pair[1]) > 1e-12 {
			t.Errorf("%s is %v, want %v", name, pair[0], pair[1])
		}
	}
	answers[1].Body = []byte(strings.Replace(string(answers[1].Body), `"grad_norm":2`, `"grad_norm":3`, 1))
	if _, err := merge(answers); !errors.Is(err, ErrFrame) {
		t.Errorf("two gradient norms: %v", err)
	}
}

func TestEncodeCrossesTheWire(t *testing.T) {
	k := newBus(t, "encode")
	var got encodeBody
	made, _ := set(t, k, Options{}, func(_ int, r request) reply {
		if r.name != "encode" {
			return reply{}
		}
		must(t, bus.DecodeStrict(r.body, &got))
		return reply{tensors: map[string]safetensors.Tensor{"prompt": safetensors.FromInt32([]int32{1, 2, 3}, 3), "response": safetensors.FromInt32([]int32{9, 0}, 2)}}
	})
	must(t, made.Begin(t.Context(), someStage))
	q := rollout.Question{ID: "q", Messages: []rollout.Message{{Role: "user", Parts: []rollout.Part{{Text: "see"}, {Image: &rollout.Image{Digest: "d"}}}}}}
	e, err := made.Encode(t.Context(), q, "a lesion")
	must(t, err)
	if len(e.Prompt) != 3 || len(e.Response) != 2 || got.Response != "a lesion" || got.Messages[0].Parts[1].Image != "d" || got.Messages[0].Parts[0].Text != "see" {
		t.Errorf("sent %+v, got %+v", got, e)
	}
}

func TestOptionsReportEverythingAtOnce(t *testing.T) {
	_, err := Options{Ranks: -1, Silence: -1, MaxPixels: -1, Launch: &Launch{Threads: -1, Sharding: "half"}}.prepare()
	for _, words := range []string{"Conn is missing", "Scope.Run", "Scope.Incarnation is 0", "Ranks is -1", "Silence is", "MaxPixels", "Sharding of Launch is", "Python of Launch", "Bus of Launch", "below 0"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("the error does not say %q: %v", words, err)
		}
	}
}

// TestOffendersOfIDsWithSlashes: a trace is of one group, even where the id of
// another is the beginning of that group's.
func TestOffendersOfIDsWithSlashes(t *testing.T) {
	l := &layout{ids: []string{"a", "a/b"}}
	answers := []answer{{Error: &failure{Groups: []string{"a/b"}, Traces: []string{"a/b/0"}}}, {Error: &failure{Groups: []string{"a"}, Traces: []string{"a/2"}}}, {}}
	var bad *trainer.BadStepError
	if err := l.offenders(&trainer.BadStepError{Step: 3}, answers); !errors.As(err, &bad) || !slices.Equal(bad.Traces, []string{"a/2", "a/b/0"}) {
		t.Errorf("%+v, want each trace once, in the order of the groups", bad)
	}
}
