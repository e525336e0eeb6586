package rollouttest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

func offer(version int) rollout.Offer {
	return rollout.Offer{
		Policy:    rollout.Policy{Incarnation: 1, Version: version, Digest: fmt.Sprintf("%064d", version)},
		Transport: rollout.ByDirectory, Path: "/weights",
	}
}

func TestScriptedConforms(t *testing.T) {
	rollouttest.Run(t, func(*testing.T) rollouttest.Setup {
		return rollouttest.Setup{
			Fleet: rollouttest.NewScripted(rollouttest.Script{Servers: []string{"a", "b"}}),
			Offer: func(_ *testing.T, version int) rollout.Offer { return offer(version) },
		}
	})
}

func liveJob(id string) (rollouttest.Script, rollout.Job) {
	policy := offer(0).Policy
	q := rollouttest.Question(1)
	return rollouttest.Script{Live: &policy}, rollout.Job{
		ID: rollout.JobID(id), Question: q, Policy: policy,
		Sampling: rollout.Sampling{Traces: 3, Temperature: 1, TopP: 1, MaxTokens: 200, Seed: 1 << 10},
	}
}

func TestFaultsHappenInOrderAndStop(t *testing.T) {
	script, job := liveJob("j")
	fleet := rollouttest.NewScripted(script)
	broken := errors.New("broken")
	fleet.Inject(job.ID, rollouttest.Fault{Err: broken, Times: 2})
	fleet.Inject(job.ID, rollouttest.Fault{Drop: rollout.ReasonUnavailable})
	fleet.Inject(job.ID, rollouttest.Fault{Mangle: rollouttest.Garbage})
	fleet.Inject(job.ID, rollouttest.Fault{Mangle: rollouttest.Abort})
	fleet.Inject(job.ID, rollouttest.Fault{Mangle: rollouttest.OtherPolicy})
	ctx := context.Background()
	for range 2 {
		if _, err := fleet.Sample(ctx, job); !errors.Is(err, broken) {
			t.Fatalf("got %v", err)
		}
	}
	for _, want := range []rollout.Reason{rollout.ReasonUnavailable, rollout.ReasonGarbage, rollout.ReasonAborted, rollout.ReasonStale} {
		group, err := fleet.Sample(ctx, job)
		if err == nil {
			err = group.Check(job)
		}
		var dropped *rollout.Dropped
		if !errors.As(err, &dropped) || dropped.Reason != want {
			t.Fatalf("got %v, want %s", err, want)
		}
	}
	group, err := fleet.Sample(ctx, job)
	if err != nil || group.Check(job) != nil {
		t.Fatalf("after the faults: %v, %v", err, group.Check(job))
	}
	if n := fleet.Sampled(job.ID); n != 7 {
		t.Fatalf("sampled %d times, want 7", n)
	}
}

func TestAdoptWaitsForRunningJobs(t *testing.T) {
	script, job := liveJob("held")
	fleet := rollouttest.NewScripted(script)
	hold, reached := make(chan struct{}), make(chan struct{})
	fleet.Inject(job.ID, rollouttest.Fault{Hold: hold, Reached: reached})
	sampled, adopted := make(chan error, 1), make(chan error, 1)
	go func() {
		group, err := fleet.Sample(context.Background(), job)
		if err == nil {
			err = group.Check(job)
		}
		sampled <- err
	}()
	<-reached
	go func() {
		_, err := fleet.Adopt(context.Background(), offer(1))
		adopted <- err
	}()
	if len(fleet.Policies()) != 0 {
		t.Fatal("adopted while a job of the old policy was running")
	}
	close(hold)
	if err := <-sampled; err != nil {
		t.Fatal(err)
	}
	if err := <-adopted; err != nil {
		t.Fatal(err)
	}
	if p := fleet.Policies(); len(p) != 1 || p[0].Version != 1 {
		t.Fatalf("policies %v", p)
	}
}

func TestQuorum(t *testing.T) {
	fleet := rollouttest.NewScripted(rollouttest.Script{Servers: []string{"a", "b", "c"}, Quorum: 2})
	ctx := context.Background()
	fleet.FailAdopt("b", 2)
	adopted, err := fleet.Adopt(ctx, offer(0))
	if err != nil || len(adopted.Servers) != 3 || adopted.Servers[1].Err == "" {
		t.Fatalf("%+v, %v", adopted, err)
	}
	for i := range 6 {
		_, job := liveJob(fmt.Sprint("job-", i))
		group, err := fleet.Sample(ctx, job)
		if err != nil || group.Server == "b" {
			t.Fatalf("server %q, %v: b has not adopted", group.Server, err)
		}
	}
	fleet.FailAdopt("a", 1)
	_, err = fleet.Adopt(ctx, offer(1))
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) || quorum.Need != 2 {
		t.Fatalf("got %v, want a quorum error", err)
	}
	if _, err := fleet.Adopt(ctx, rollout.Offer{Policy: rollout.Policy{Incarnation: 0, Version: 9}}); err == nil {
		t.Fatal("adopted a lower incarnation")
	}
}

func TestAnswerLearns(t *testing.T) {
	rate := func(version int) float64 {
		right, total := 0, 0
		for i := range 50 {
			q := rollouttest.Question(i)
			for seed := range 8 {
				trace := rollouttest.Answer(q, int64(seed), version, rollout.Sampling{Temperature: 1, MaxTokens: 400})
				if trace.Finish == rollout.FinishStop {
					total++
					if trace.Text[len(trace.Text)-len("A</answer>"):] == "A</answer>" {
						right++
					}
				}
			}
		}
		return float64(right) / float64(total)
	}
	if before, after := rate(0), rate(20); after < before+0.2 {
		t.Fatalf("accuracy %.2f at version 0 and %.2f at version 20", before, after)
	}
}
