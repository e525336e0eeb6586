package coordinator

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

// sampledBatch is a batch of two groups and a drop.
func sampledBatch() *rolloutBatch {
	b := &rolloutBatch{step: 3, version: 1, admitted: 3, refills: 1, cursor: []byte("7"),
		drops: []drop{{Job: "rl-3-1", Reason: rollout.ReasonRefused, Error: "no"}}}
	for i, id := range []rollout.JobID{"rl-3-0", "rl-3-2"} {
		g := scored{Job: rollout.Job{ID: id, Index: 2 * i, Question: question(i)}, group: rollout.Group{Job: id, Traces: make([]rollout.Trace, 2)}}
		g.Scores = []reward.Score{{Total: 1.0 / 3, Correct: true, Parts: []reward.Part{{Name: "format", Value: 1, Weight: 0.5}}}, {Missing: true}}
		b.groups = append(b.groups, g)
	}
	return b
}

func TestBatchSurvivesTheDisk(t *testing.T) {
	b := sampledBatch()
	meta, groups, err := b.encode(7, "rl")
	if err != nil {
		t.Fatal(err)
	}
	w := want{seed: 7, stage: "rl", step: 3, version: 1}
	got, err := decodeBatch(meta, groups, w)
	if err != nil {
		t.Fatal(err)
	}
	b.recorded = true
	if !reflect.DeepEqual(got, b) {
		t.Errorf("read back\n got %+v\nwant %+v", got, b)
	}
	if jobs := got.jobs(); len(jobs) != 3 || jobs[2] != "rl-3-1" {
		t.Errorf("jobs %v, want the dropped one too", jobs)
	}
	for name, change := range map[string]func(w *want, groups *[]rollout.Group){
		"another seed":    func(w *want, _ *[]rollout.Group) { w.seed++ },
		"another stage":   func(w *want, _ *[]rollout.Group) { w.stage = "sft" },
		"another step":    func(w *want, _ *[]rollout.Group) { w.step++ },
		"an older policy": func(w *want, _ *[]rollout.Group) { w.version = 2 },
		"groups lost":     func(_ *want, g *[]rollout.Group) { *g = (*g)[:1] },
		"groups swapped":  func(_ *want, g *[]rollout.Group) { *g = []rollout.Group{(*g)[1], (*g)[0]} },
		"a trace lost": func(_ *want, g *[]rollout.Group) {
			short := (*g)[0]
			short.Traces = short.Traces[:1]
			*g = []rollout.Group{short, (*g)[1]}
		},
	} {
		spoilt, spoiltGroups := w, groups
		change(&spoilt, &spoiltGroups)
		if _, err := decodeBatch(meta, spoiltGroups, spoilt); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	meta, groups, err := sampledBatch().encode(7, "rl")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(meta)
	f.Add([]byte(`{"version":1,"groups":[{}]}`))
	f.Add([]byte(`{"version":1,"seed":7,"stage":"rl","step":3,"policy":1,"groups":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := decodeBatch(data, groups, want{seed: 7, stage: "rl", step: 3, version: 1})
		if err == nil && len(b.groups) != len(groups) {
			t.Errorf("took %d groups of %d", len(b.groups), len(groups))
		}
	})
}

func TestStateSurvivesTheDisk(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, full(1))
	k.finish(t)
	point, err := k.store.latest()
	if err != nil {
		t.Fatal(err)
	}
	state, err := DecodeState(point.State)
	if err != nil {
		t.Fatal(err)
	}
	if state.Step != 11 || state.Stage != "rl" || state.StageStep != 8 || state.Update != 19 || state.Shaper == nil ||
		state.Shaper.Step != 8 || state.Reference == nil || state.Policy.Version != 8 || !state.Counts.Closed() {
		t.Errorf("final state %+v", state)
	}
	again, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := DecodeState(again)
	if err != nil || !reflect.DeepEqual(state, twice) {
		t.Errorf("state changed on its way: %+v, %v", twice, err)
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"version":1,"seed":7,"step":3,"stage":"rl","stage_step":3,"update":3,"bad_steps":0,"cursor":"Nw==","refills":0}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"shaper":{"step":-1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		state, err := DecodeState(data)
		if err == nil && state.Version != stateVersion {
			t.Errorf("took version %d", state.Version)
		}
	})
}

func TestCompareJobs(t *testing.T) {
	order := []rollout.JobID{"rl-1-2", "rl-1-9", "rl-1-10", "rl-1-11"}
	for i := range len(order) - 1 {
		if compareJobs(order[i], order[i+1]) >= 0 || compareJobs(order[i+1], order[i]) <= 0 {
			t.Errorf("%s does not come before %s", order[i], order[i+1])
		}
	}
}

func TestErrorsSayWhatAndWhere(t *testing.T) {
	for _, test := range []struct {
		err   error
		parts []string
	}{
		{&EmptyStepError{Stage: "rl", Step: 3, Admitted: 6, Reasons: map[string]int{"stale": 6}}, []string{"rl", "step 3", "6", "stale"}},
		{&CountError{Counts{Admitted: 3, Trained: 1}}, []string{"admitted 3", "trained 1", "in flight 0"}},
		{&ResumeError{Point: "/x", Err: ErrStopped}, []string{"/x", "stopped"}},
	} {
		for _, part := range test.parts {
			if !strings.Contains(test.err.Error(), part) {
				t.Errorf("%q says nothing of %q", test.err, part)
			}
		}
	}
}
