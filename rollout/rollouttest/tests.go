package rollouttest

import (
	"context"
	"errors"
	"math"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

func testAnswers(t *testing.T, s Setup) {
	group := s.sample(t, s.job(0, s.adopt(t, 0)))
	if group.Server == "" {
		t.Error("group does not name its server")
	}
	if group.Started.IsZero() || group.Finished.Before(group.Started) {
		t.Errorf("started %v, finished %v", group.Started, group.Finished)
	}
	if group.Tokens() < len(group.Traces) {
		t.Errorf("%d tokens in %d traces", group.Tokens(), len(group.Traces))
	}
}

func testSeedOrder(t *testing.T, s Setup) {
	policy := s.adopt(t, 0)
	job := s.job(0, policy)
	group := s.sample(t, job)
	distinct := false
	for i, want := range group.Traces {
		single := job
		single.ID = rollout.JobID(string(job.ID) + "-alone-" + string(rune('a'+i)))
		single.Sampling.Traces = 1
		single.Sampling.Seed += int64(i)
		got := s.sample(t, single).Traces[0]
		s.compare(t, got, want)
		distinct = distinct || !reflect.DeepEqual(want.Tokens, group.Traces[0].Tokens)
	}
	if !distinct {
		t.Error("all traces of a group at temperature 1 are equal: the seeds do not differ")
	}
}

func testSameJob(t *testing.T, s Setup) {
	job := s.job(1, s.adopt(t, 0))
	first := s.sample(t, job)
	second := s.sample(t, job)
	if !reflect.DeepEqual(first.PromptTokens, second.PromptTokens) {
		t.Error("prompt tokens differ")
	}
	for i := range first.Traces {
		s.compare(t, second.Traces[i], first.Traces[i])
	}
	// After a commit whatever was kept is gone, and the answer is the same.
	if err := s.Fleet.Commit(patient(t), []rollout.JobID{job.ID}); err != nil {
		t.Fatal(err)
	}
	third := s.sample(t, job)
	for i := range first.Traces {
		s.compare(t, third.Traces[i], first.Traces[i])
	}
}

func testTopK(t *testing.T, s Setup) {
	job := s.job(0, s.adopt(t, 0))
	job.Sampling.TopLogprobs = 4
	for i, trace := range s.sample(t, job).Traces { // Check compares the lengths
		for j, h := range trace.TopKEntropy {
			if math.IsNaN(float64(h)) || math.IsInf(float64(h), 0) || h < 0 {
				t.Fatalf("trace %d, token %d: entropy %g", i, j, h)
			}
		}
	}
}

func testConcurrency(t *testing.T, s Setup) {
	policy := s.adopt(t, 0)
	const jobs = 8
	groups := make([]rollout.Group, jobs)
	errs := make([]error, jobs)
	var wg sync.WaitGroup
	ctx := patient(t)
	for i := range jobs {
		wg.Go(func() { groups[i], errs[i] = s.Fleet.Sample(ctx, s.job(i, policy)) })
	}
	wg.Wait()
	for i := range jobs {
		job := s.job(i, policy)
		if errs[i] != nil {
			t.Fatalf("job %s: %v", job.ID, errs[i])
		}
		if err := groups[i].Check(job); err != nil {
			t.Fatal(err)
		}
		again := s.sample(t, job)
		for k := range again.Traces {
			s.compare(t, again.Traces[k], groups[i].Traces[k])
		}
	}
}

func testWaitsForPolicy(t *testing.T, s Setup) {
	offer := s.Offer(t, 0)
	job := s.job(0, offer.Policy)
	type result struct {
		group rollout.Group
		err   error
	}
	done := make(chan result, 1)
	ctx := patient(t)
	go func() {
		group, err := s.Fleet.Sample(ctx, job)
		done <- result{group, err}
	}()
	select {
	case r := <-done: // nothing is live yet: an answer now would be of other weights
		t.Fatalf("answered before its policy was live: %v", r.err)
	default:
	}
	if _, err := s.Fleet.Adopt(ctx, offer); err != nil {
		t.Fatal(err)
	}
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	if err := r.group.Check(job); err != nil {
		t.Fatal(err)
	}
}

func testAdopt(t *testing.T, s Setup) {
	first := s.adopt(t, 0)
	s.sample(t, s.job(0, first))
	second := s.adopt(t, 1)
	if first == second {
		t.Fatalf("both offers are policy %s", first)
	}
	s.sample(t, s.job(0, second)) // Check compares the policy
}

func testStale(t *testing.T, s Setup) {
	first := s.adopt(t, 0)
	s.adopt(t, 1)
	wantDropped(t, s, s.job(0, first), rollout.ReasonStale)
}

func testRefused(t *testing.T, s Setup) {
	job := s.job(0, s.adopt(t, 0))
	job.Sampling.MaxTokens = 1 << 30 // longer than any context
	wantDropped(t, s, job, rollout.ReasonRefused)
	s.sample(t, s.job(1, job.Policy)) // and the fleet lives on
}

func testDeadline(t *testing.T, s Setup) {
	policy := s.adopt(t, 0)
	future := policy
	future.Version, future.Digest = policy.Version+1000, "never offered"
	job := s.job(0, future)
	job.Deadline = time.Now().Add(300 * time.Millisecond)
	wantDropped(t, s, job, rollout.ReasonDeadline)
	s.sample(t, s.job(1, policy))
}

func testCancelled(t *testing.T, s Setup) {
	policy := s.adopt(t, 0)
	future := policy
	future.Version, future.Digest = policy.Version+1000, "never offered"
	ctx, cancel := context.WithCancel(patient(t))
	done := make(chan error, 1)
	go func() {
		_, err := s.Fleet.Sample(ctx, s.job(0, future))
		done <- err
	}()
	cancel()
	err := <-done
	var dropped *rollout.Dropped
	if !errors.Is(err, context.Canceled) || errors.As(err, &dropped) {
		t.Fatalf("got %v, want context.Canceled and no *Dropped", err)
	}
	s.sample(t, s.job(1, policy))
}

func testCommit(t *testing.T, s Setup) {
	policy := s.adopt(t, 0)
	ids := []rollout.JobID{"never-admitted"}
	for i := range 3 {
		job := s.job(i, policy)
		s.sample(t, job)
		ids = append(ids, job.ID)
	}
	for range 2 {
		if err := s.Fleet.Commit(patient(t), ids); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Fleet.Commit(patient(t), nil); err != nil {
		t.Fatalf("commit of nothing: %v", err)
	}
}

// wantDropped samples a job that must be dropped for reason.
func wantDropped(t *testing.T, s Setup, job rollout.Job, reason rollout.Reason) {
	t.Helper()
	_, err := s.Fleet.Sample(patient(t), job)
	var dropped *rollout.Dropped
	if !errors.As(err, &dropped) || dropped.Reason != reason || dropped.Job != job.ID {
		t.Fatalf("got %v, want job %s dropped: %s", err, job.ID, reason)
	}
}

// compare checks that two samplings of one trace agree as far as the engine
// promises.
func (s Setup) compare(t *testing.T, got, want rollout.Trace) {
	t.Helper()
	if s.Tolerance == 0 {
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("traces differ:\n%v\n%v", got, want)
		}
		return
	}
	for i := range min(len(got.Tokens), len(want.Tokens)) {
		if got.Tokens[i] != want.Tokens[i] {
			if i == 0 {
				t.Fatalf("first tokens are %d and %d", got.Tokens[i], want.Tokens[i])
			}
			return
		}
		if d := math.Abs(float64(got.Logprobs[i] - want.Logprobs[i])); d > s.Tolerance {
			t.Fatalf("token %d: log-probabilities differ by %g", i, d)
		}
	}
}
