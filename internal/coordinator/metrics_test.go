package coordinator

import (
	"context"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
	"github.com/uadt-train/uadt-train/uadt"
)

// promised are the names that other documents rely on, as they are written
// there.
const promised = `step stage policy_version time
reward/{mean,std,format,answer,missing} accuracy/{train,eval,eval_greedy,eval_passk}
rollout/{tokens,length_mean,length_max,truncated_share,seconds,tokens_per_second,staleness_mean,dropped}
entropy/{mean,min,max,right,wrong,within_std,between_std,estimator}
uadt/{tau,sigma,tau_drift,common_shift,omega_std,floor_active,omega_mean,omega_saturated,lambda,gain,mass_moved,sign_flips,zero_variance_groups,effective_group_size,corr_length_within,corr_length_between,corr_correct_within,corr_correct_between}
advantage/{raw_pos,raw_neg,shaped_pos,shaped_neg} loss/{total,policy,kl} kl/{behaviour,reference}
clip/{low,high,dual} rollout_gap/{w_mean,w_max,truncated,kl} length/{right,wrong} answers/distinct grad/norm lr
trainer/{seconds,tokens_per_second,peak_bytes}
seconds/{step,rollout,reward,score,shape,pack,train,publish,checkpoint} memory/rss_bytes`

func promisedNames() []string {
	var names []string
	for _, word := range strings.Fields(promised) {
		prefix, rest, several := strings.Cut(word, "{")
		if !several {
			names = append(names, word)
			continue
		}
		for _, name := range strings.Split(strings.TrimSuffix(rest, "}"), ",") {
			names = append(names, prefix+name)
		}
	}
	return names
}

// slow is a trainer that says how long it took.
type slow struct{ trainer.Backend }

func (s slow) Step(ctx context.Context, n int, a trainer.Advantages) (trainer.Report, error) {
	r, err := s.Backend.Step(ctx, n, a)
	r.Seconds, r.PeakBytes = 0.5, 1<<30
	return r, err
}

func TestEveryPromisedMetricIsThere(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, func(k *kit, s *trainertest.Script) {
		full(1)(k, s)
		k.options.Stages[1].Batch = 12 // correlations need 10 pairs
		k.options.RL.DropZeroVariance = false
	})
	k.options.Parts.Backend = slow{k.trainer}
	k.finish(t)
	seen := map[string]bool{}
	paths, err := filepath.Glob(filepath.Join(k.dir, "metrics/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		line, err := readLine(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range line {
			seen[name] = true
			if x, ok := value.(float64); ok && (math.IsNaN(x) || math.IsInf(x, 0)) {
				t.Errorf("%s: %s is %v", path, name, x)
			}
		}
	}
	for _, name := range promisedNames() {
		if !seen[name] {
			t.Errorf("metric %s is nowhere", name)
		}
		delete(seen, name)
	}
	for name := range maps.Clone(seen) {
		if strings.HasPrefix(name, "uadt/") {
			delete(seen, name) // more alarms than were promised
		}
	}
	extra := slices.Sorted(maps.Keys(seen))
	if want := []string{"rollout/admitted", "rollout/trained"}; !slices.Equal(extra, want) {
		t.Errorf("metrics beyond the promised: %v, want %v", extra, want)
	}
}

// TestRewardAndRolloutValues works one small batch out by hand.
func TestRewardAndRolloutValues(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, nil)
	c, err := New(k.options)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.newRing(c.o.Stages[0], place{offset: 10}, start{})
	if err != nil {
		t.Fatal(err)
	}
	trace := func(n int, finish rollout.Finish) rollout.Trace {
		return rollout.Trace{Tokens: make([]int32, n), Logprobs: make([]float32, n), Finish: finish}
	}
	score := func(format, answer float64, extracted string) reward.Score {
		return reward.Score{Total: 0.5*format + answer, Correct: answer == 1, Answer: reward.Answer{Extracted: extracted},
			Parts: []reward.Part{{Name: reward.FormatPart, Value: format}, {Name: reward.AnswerPart, Value: answer}}}
	}
	b := &rolloutBatch{step: 3, version: 1, admitted: 4, drops: []drop{{Job: "x"}}}
	b.groups = []scored{
		{Job: rollout.Job{ID: "a"}, Scores: []reward.Score{score(1, 1, "A"), score(1, 0, "B"), {Missing: true}},
			group: rollout.Group{Traces: []rollout.Trace{trace(4, 0), trace(2, 0), trace(6, rollout.FinishLength)}}},
		{Job: rollout.Job{ID: "b"}, Scores: []reward.Score{score(0, 0, ""), score(1, 1, "A")},
			group: rollout.Group{Traces: []rollout.Trace{trace(8, 0), trace(10, 0)}}},
	}
	l := &learned{batch: b, updates: r.split(b)}
	v := telemetry.Metrics{}
	r.rewardValues(v, l)
	r.rolloutValues(v, l)
	for name, want := range map[string]float64{
		"reward/mean": 0.875, "reward/std": 0.75, "reward/format": 0.75, "reward/answer": 0.5, "reward/missing": 0.2,
		"accuracy/train": 0.5, "length/right": 7, "length/wrong": 5, "answers/distinct": 1.5,
		"rollout/tokens": 30, "rollout/length_mean": 6, "rollout/length_max": 10, "rollout/truncated_share": 0.2,
		"rollout/staleness_mean": 1, "rollout/admitted": 4, "rollout/dropped": 1, "rollout/trained": 2,
	} {
		if got, ok := v[name]; !ok || math.Abs(got-want) > 1e-12 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// TestTrainerValues averages over updates by tokens and leaves refused ones out.
func TestTrainerValues(t *testing.T) {
	v := telemetry.Metrics{}
	trainerValues(v, []*update{
		{rate: 0.1, report: trainer.Report{Loss: 1, Tokens: 10, Seconds: 1, PeakBytes: 5, Gap: trainer.Gap{WMax: 3}}},
		{rate: 0.2, report: trainer.Report{Loss: 99}, bad: ErrStopped},
		{rate: 0.3, report: trainer.Report{Loss: 4, Tokens: 20, Seconds: 2, PeakBytes: 4, Gap: trainer.Gap{WMax: 2}, KLReference: 6}},
	}, true)
	for name, want := range map[string]float64{"loss/total": 3, "lr": 0.3, "trainer/seconds": 3, "trainer/tokens_per_second": 10,
		"trainer/peak_bytes": 5, "rollout_gap/w_max": 3, "kl/reference": 4} {
		if got := v[name]; math.Abs(got-want) > 1e-12 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	v = telemetry.Metrics{}
	trainerValues(v, []*update{{rate: 0.1, bad: ErrStopped}}, false)
	if _, there := v["loss/total"]; there || v["lr"] != 0.1 {
		t.Errorf("a step that was refused whole has metrics %v", v)
	}
}

// TestEvaluation: jobs of their own, no slot, no book, the same seeds for every
// version, and the policy held while they run.
func TestEvaluation(t *testing.T) {
	jobs := make(chan rollout.Job, 1000)
	k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
		k.options.RL.MaxStaleness = 1
		k.options.Eval = Eval{Every: 4, Samples: 3, Greedy: true, Questions: []rollout.Question{question(50), question(51), question(52)}}
		k.options.Parts.Fleet = jobWatch{k.fleet, jobs}
	})
	r := k.finish(t)
	close(jobs)
	if r.Counts != (Counts{Admitted: 24, Trained: 24}) {
		t.Errorf("counts %+v: evaluation must not be in the books", r.Counts)
	}
	seeds := map[string]map[int64]bool{}
	versions := map[int]int{}
	for job := range jobs {
		if job.Purpose != rollout.Eval {
			continue
		}
		versions[job.Policy.Version]++
		way := "sampled"
		if job.Sampling.Temperature == 0 {
			way = "greedy"
		}
		key := way + job.Question.ID
		if seeds[key] == nil {
			seeds[key] = map[int64]bool{}
		}
		seeds[key][job.Sampling.Seed] = true
	}
	if want := map[int]int{0: 6, 4: 6, 6: 6}; !maps.Equal(versions, want) {
		t.Errorf("evaluated versions and their jobs %v, want %v", versions, want)
	}
	for key, all := range seeds {
		if len(all) != 1 {
			t.Errorf("%s had %d seeds over the versions, want one", key, len(all))
		}
	}
	events := eventsOf[telemetry.Evaluated](k.events)
	if len(events) != 3 || events[1].Global != 4 {
		t.Fatalf("evaluations %+v", events)
	}
	for _, e := range events {
		for _, name := range []string{"accuracy/eval", "accuracy/eval_greedy", "accuracy/eval_passk"} {
			if x, ok := e.Metrics[name]; !ok || x < 0 || x > 1 {
				t.Errorf("%s at %d is %v", name, e.Global, x)
			}
		}
		if e.Metrics["accuracy/eval_passk"] < e.Metrics["accuracy/eval"] {
			t.Errorf("pass@k %v is below the mean %v", e.Metrics["accuracy/eval_passk"], e.Metrics["accuracy/eval"])
		}
	}
}

type jobWatch struct {
	rollout.Fleet
	jobs chan<- rollout.Job
}

func (w jobWatch) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	w.jobs <- job
	return w.Fleet.Sample(ctx, job)
}

// TestThinkSpan: H covers the marked tokens only.
func TestThinkSpan(t *testing.T) {
	if got := span(5, func([]int32) (int, int) { return 1, 3 }, nil); !slices.Equal(got, []bool{false, true, true, false, false}) {
		t.Errorf("span %v", got)
	}
	if got := span(2, func([]int32) (int, int) { return -4, 9 }, nil); !slices.Equal(got, []bool{true, true}) {
		t.Errorf("span beyond the ends %v", got)
	}
	entropy := func(change func(*kit, *trainertest.Script)) float64 {
		k := mustKit(t, t.TempDir(), 1, change)
		k.options.Stages[0].Steps = 1
		k.finish(t)
		return eventsOf[telemetry.StepDone](k.events)[0].Metrics["entropy/mean"]
	}
	all := entropy(nil)
	part := entropy(func(k *kit, _ *trainertest.Script) {
		k.options.RL.UADT.Span = uadt.SpanThink
		k.options.RL.Think = func(tokens []int32) (int, int) { return 7, len(tokens) - 10 }
	})
	if all == part {
		t.Error("the span changes nothing")
	}
}

// TestDroppedTraces: a trace that was aborted is in the ledger and not trained.
func TestDroppedTraces(t *testing.T) {
	k, c := watched(t, func(k *kit, _ *trainertest.Script) {
		k.options.Stages[0].Steps = 1
		k.fleet.Inject("rl-1-1", misfortunes[5])
	})
	k.finish(t)
	if n := len(c.loaded[0].Groups[1].Traces); n != 3 || len(c.values[0][1]) != 3 {
		t.Errorf("%d traces with %d advantages were trained, want 3", n, len(c.values[0][1]))
	}
	rows, err := k.store.ledgerRows(1)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 16 || rows[7]["dropped"] != "aborted" || rows[7]["finish"] != "abort" || rows[6]["dropped"] != "" {
		t.Errorf("%d rows; row 7 %v", len(rows), rows[7])
	}
}
