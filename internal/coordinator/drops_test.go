package coordinator

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// misfortunes are what may befall one job.
var misfortunes = []rollouttest.Fault{
	{Drop: rollout.ReasonRefused, Times: -1},
	{Drop: rollout.ReasonUnavailable, Times: -1},
	{Err: errors.New("a worker died"), Times: -1},
	{Mangle: rollouttest.Garbage, Times: -1},
	{Mangle: rollouttest.OtherPolicy, Times: -1},
	{Mangle: rollouttest.Abort, Times: -1}, // one trace of the group, which is trained without it
	{Mangle: func(g *rollout.Group) { g.Traces = g.Traces[:1] }, Times: -1},
	{Mangle: func(g *rollout.Group) { g.Seed++ }, Times: -1},
}

// TestBooksClose draws schedules of drops, refusals and bad steps: whatever is
// drawn, admitted = trained + dropped, and every step says the same of itself.
func TestBooksClose(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		staleness := rapid.IntRange(0, 3).Draw(rt, "staleness")
		batch := rapid.IntRange(1, 4).Draw(rt, "questions")
		refills := rapid.IntRange(0, 5).Draw(rt, "refills")
		steps := rapid.IntRange(1, 5).Draw(rt, "steps")
		k := mustKit(t, t.TempDir(), 1, func(k *kit, script *trainertest.Script) {
			o := &k.options
			o.Stages[0].Steps, o.Stages[0].Batch = steps, batch
			o.RL.MaxStaleness, o.RL.MaxRefill = staleness, refills
			o.RL.Updates = rapid.IntRange(1, 3).Draw(rt, "updates")
			o.RL.DropZeroVariance = rapid.Bool().Draw(rt, "dynamic")
			o.MaxBadSteps = 100
			for n := 1; n <= steps; n++ {
				for i := range batch + refills {
					job := rollout.JobID(fmt.Sprintf("rl-%d-%d", n, i))
					switch luck := rapid.IntRange(0, 29).Draw(rt, string(job)); {
					case luck < len(misfortunes):
						k.fleet.Inject(job, misfortunes[luck])
					case luck == 28:
						script.Refuse = append(script.Refuse, string(job))
					case luck == 29:
						script.Bad = append(script.Bad, n)
					}
				}
			}
		})
		r, err := k.run(patient(t), t.Context())
		var empty *EmptyStepError
		if err != nil && !errors.As(err, &empty) {
			rt.Fatal(err)
		}
		if !r.Counts.Closed() {
			rt.Errorf("counts %+v do not close", r.Counts)
		}
		admitted, trained, dropped := 0.0, 0.0, 0.0
		for _, s := range eventsOf[telemetry.StepDone](k.events) {
			m := s.Metrics
			if m["rollout/admitted"] != m["rollout/trained"]+m["rollout/dropped"] {
				rt.Errorf("step %d: admitted %v, trained %v, dropped %v", s.Step, m["rollout/admitted"], m["rollout/trained"], m["rollout/dropped"])
			}
			if m["rollout/trained"] > float64(batch) || m["rollout/admitted"] > float64(batch+refills) {
				rt.Errorf("step %d: trained %v of %v admitted, the step is %d and %d refills", s.Step, m["rollout/trained"], m["rollout/admitted"], batch, refills)
			}
			admitted += m["rollout/admitted"]
			trained += m["rollout/trained"]
			dropped += m["rollout/dropped"]
		}
		if err != nil {
			return
		}
		if want := (Counts{Admitted: int(admitted), Trained: int(trained), Dropped: int(dropped)}); r.Counts != want {
			rt.Errorf("counts %+v, the steps say %+v", r.Counts, want)
		}
		if n := len(eventsOf[telemetry.GroupDropped](k.events)); n != int(dropped) {
			rt.Errorf("%d groups were announced as dropped, want %v", n, dropped)
		}
	})
}

// TestRefillDoesNotDependOnOrder: a dropped group is replaced by the next
// question, whichever job fails first.
func TestRefillDoesNotDependOnOrder(t *testing.T) {
	k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
		k.options.Stages[0].Steps = 1
		k.fleet.Inject("rl-1-1", rollouttest.Fault{Drop: rollout.ReasonRefused})
		k.fleet.Inject("rl-1-3", rollouttest.Fault{Drop: rollout.ReasonDeadline})
		k.fleet.Inject("rl-1-4", rollouttest.Fault{Drop: rollout.ReasonGarbage})
	})
	r := k.finish(t)
	if want := (Counts{Admitted: 6, Trained: 3, Dropped: 3}); r.Counts != want {
		t.Errorf("counts %+v, want %+v", r.Counts, want)
	}
	rows, err := k.store.ledgerRows(1)
	if err != nil {
		t.Fatal(err)
	}
	var questions []any
	for i := 0; i < len(rows); i += 4 {
		questions = append(questions, rows[i]["question"])
	}
	if got := fmt.Sprint(questions); got != "[q0 q2 q5]" {
		t.Errorf("trained questions %s, want q0, q2 and the second refill q5", got)
	}
	if k.events.alarms("short_step") != 1 {
		t.Error("a step that trains 3 of 4 questions raised no alarm")
	}
}

func TestEmptyStepIsNamed(t *testing.T) {
	for name, change := range map[string]func(k *kit, s *trainertest.Script){
		"by the fleet": func(k *kit, _ *trainertest.Script) {
			for i := range 6 {
				k.fleet.Inject(rollout.JobID(fmt.Sprintf("rl-2-%d", i)), rollouttest.Fault{Drop: rollout.ReasonUnavailable})
			}
		},
		"by the trainer": func(_ *kit, s *trainertest.Script) { s.Refuse = []string{"rl-2-0", "rl-2-1", "rl-2-2", "rl-2-3"} },
	} {
		t.Run(name, func(t *testing.T) {
			k := mustKit(t, t.TempDir(), 1, change)
			_, err := k.run(patient(t), t.Context())
			var empty *EmptyStepError
			if !errors.As(err, &empty) || empty.Step != 2 {
				t.Errorf("got %v, want an *EmptyStepError of step 2", err)
			}
		})
	}
}

func TestCheckGroup(t *testing.T) {
	fleet := rollouttest.NewScripted(rollouttest.Script{Live: &rollout.Policy{}})
	job := rollout.Job{ID: "j", Question: question(1), Sampling: rollout.Sampling{Traces: 4, Temperature: 1, TopP: 1, MaxTokens: 100, Seed: 1024, Banned: []int32{9}}}
	tests := []struct {
		name   string
		mangle func(g *rollout.Group)
		want   rollout.Reason
	}{
		{"good", func(*rollout.Group) {}, ""},
		{"one aborted", rollouttest.Abort, ""},
		{"two empty", func(g *rollout.Group) { g.Traces[0].Tokens, g.Traces[1].Tokens = nil, nil }, ""},
		{"three empty", func(g *rollout.Group) {
			for i := range 3 {
				g.Traces[i].Tokens = nil
			}
		}, rollout.ReasonEmpty},
		{"three aborted", func(g *rollout.Group) {
			for i := range 3 {
				g.Traces[i].Finish = rollout.FinishAbort
			}
		}, rollout.ReasonAborted},
		{"cut short", rollouttest.Garbage, rollout.ReasonGarbage},
		{"banned id", func(g *rollout.Group) { g.Traces[2].Tokens[1] = 9 }, rollout.ReasonGarbage},
		{"too few", func(g *rollout.Group) { g.Traces = g.Traces[:3] }, rollout.ReasonGarbage},
		{"other policy", rollouttest.OtherPolicy, rollout.ReasonStale},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			group, err := fleet.Sample(t.Context(), job)
			if err != nil {
				t.Fatal(err)
			}
			test.mangle(&group)
			err = checkGroup(job, group)
			var dropped *rollout.Dropped
			if test.want == "" && err != nil {
				t.Errorf("dropped: %v", err)
			}
			if test.want != "" && (!errors.As(err, &dropped) || dropped.Reason != test.want) {
				t.Errorf("got %v, want it dropped as %s", err, test.want)
			}
		})
	}
}
