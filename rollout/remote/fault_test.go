package remote_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/remote"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

// result is what a Sample in the background came to.
type result struct {
	group rollout.Group
	err   error
}

// sample samples in the background.
func sample(ctx context.Context, fleet rollout.Fleet, job rollout.Job) <-chan result {
	done := make(chan result, 1)
	go func() {
		group, err := fleet.Sample(ctx, job)
		if err == nil {
			err = group.Check(job)
		}
		done <- result{group, err}
	}()
	return done
}

// wantReason checks that err is a drop for reason.
func wantReason(t *testing.T, err error, reason rollout.Reason) {
	t.Helper()
	var dropped *rollout.Dropped
	if !errors.As(err, &dropped) || dropped.Reason != reason {
		t.Fatalf("got %v, want dropped: %s", err, reason)
	}
}

// pair is two workers of which either may get a job: held reports which.
type pair struct {
	workers [2]*running
	fleets  [2]*rollouttest.Scripted
	reached [2]chan struct{}
	release [2]chan struct{}
}

// newPair starts two workers that hold the given job until released.
func newPair(r *ring, held rollout.JobID) *pair {
	p := &pair{}
	for i := range p.workers {
		id := string(rune('a' + i))
		p.fleets[i] = scripted("server-of-" + id)
		p.reached[i], p.release[i] = make(chan struct{}), make(chan struct{})
		p.fleets[i].Inject(held, rollouttest.Fault{Reached: p.reached[i], Hold: p.release[i]})
		p.workers[i] = r.work(id, p.fleets[i])
	}
	return p
}

// first waits for the worker that got the job; other is the one that did not.
func (p *pair) first() (first, other int) {
	select {
	case <-p.reached[0]:
		return 0, 1
	case <-p.reached[1]:
		return 1, 0
	}
}

// atWork waits for both workers to be on the bus and adopts policy 0.
func (r *ring) atWork(workers int) {
	r.t.Helper()
	fleet, err := remote.NewFleet(patient(r.t), remote.FleetOptions{Conn: r.conn, Scope: r.scope, MinWorkers: workers, Log: r.log})
	if err != nil {
		r.t.Fatal(err)
	}
	r.fleet.Close()
	r.fleet = fleet
	r.t.Cleanup(fleet.Close)
	adopt(r.t, fleet, r.scope.Incarnation, 0)
}

func TestKilledWorkersJobGoesElsewhere(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	j := job(0, 1, 0)
	p := newPair(r, j.ID)
	r.atWork(2)
	done := sample(patient(t), r.fleet, j)
	dead, heir := p.first()
	killed := time.Now()
	p.workers[dead].kill()
	<-p.reached[heir]
	t.Logf("the job was elsewhere after %s", time.Since(killed).Round(time.Millisecond))
	close(p.release[heir])
	got := <-done
	if got.err != nil {
		t.Fatal(got.err)
	}
	if want := []string{"server-of-a", "server-of-b"}[heir]; got.group.Server != want {
		t.Fatalf("answered by %s, want %s", got.group.Server, want)
	}
	if n := p.fleets[0].Sampled(j.ID) + p.fleets[1].Sampled(j.ID); n != 2 {
		t.Fatalf("sampled %d times, want once by each", n)
	}
	if stats := r.fleet.Stats(); stats != (remote.Stats{}) {
		t.Fatalf("stats %+v: the answer was not unique", stats)
	}
}

func TestTwoAnswersOneGroup(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	j := job(0, 1, 0)
	slow, fast := scripted("slow"), scripted("fast")
	slowReached, slowRelease := make(chan struct{}), make(chan struct{})
	slow.Inject(j.ID, rollouttest.Fault{Reached: slowReached, Hold: slowRelease})
	// The slow worker marks no progress and counts as hung after an instant:
	// its job goes to the other although it lives and will answer.
	r.workWith(remote.WorkerOptions{ID: "slow", Fleet: slow, Servers: []string{"slow"}, Stall: time.Millisecond})
	r.atWork(1)
	done := sample(patient(t), r.fleet, j)
	<-slowReached
	r.work("fast", fast, "fast")
	got := <-done
	if got.err != nil || got.group.Server != "fast" {
		t.Fatalf("server %s, %v", got.group.Server, got.err)
	}
	before, err := r.conn.Depth(patient(t), r.scope, bus.Traces)
	if err != nil || before.Messages != 1 {
		t.Fatalf("%+v, %v", before, err)
	}
	close(slowRelease)
	// The slow worker has published once it takes the next job; its only other
	// slots are idle, so let every slot pass through one.
	if got := <-sample(patient(t), r.fleet, job(1, 1, 0)); got.err != nil {
		t.Fatal(got.err)
	}
	again, err := r.fleet.Sample(patient(t), j)
	if err != nil || again.Server != "fast" {
		t.Fatalf("the second answer replaced the first: server %s, %v", again.Server, err)
	}
	if fast.Sampled(j.ID) != 1 || slow.Sampled(j.ID) != 1 {
		t.Fatalf("sampled %d and %d times", fast.Sampled(j.ID), slow.Sampled(j.ID))
	}
}

func TestLateAnswerOfAnOlderIncarnation(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	fleet := scripted("s")
	r.work("w", fleet, "s")
	ctx := patient(t)
	// Left behind before the new coordinator starts.
	old := r.conn.Log(r.scope, bus.Traces)
	if _, err := old.Create(ctx, "job-9", bus.Message{Schema: remote.SchemaGroup, Data: []byte("old")}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.conn.Queue(r.scope).Put(ctx, "job-8", bus.Message{Schema: remote.SchemaJob, Data: []byte("old")}); err != nil {
		t.Fatal(err)
	}
	r.fleet.Close()
	second := r.coordinator(2)
	for _, kind := range []bus.Kind{bus.Traces, bus.Jobs} {
		if depth, err := r.conn.Depth(ctx, r.scope, kind); err != nil || depth.Messages != 0 {
			t.Fatalf("%s: %+v, %v: not purged", kind, depth, err)
		}
	}
	adopt(t, second, 2, 0)
	// A worker of the old coordinator publishes late, for a job that the new one
	// has in flight under the same name.
	j := job(0, 2, 0)
	reached, hold := make(chan struct{}), make(chan struct{})
	fleet.Inject(j.ID, rollouttest.Fault{Reached: reached, Hold: hold})
	done := sample(ctx, second, j)
	<-reached
	if _, err := old.Create(ctx, string(j.ID), bus.Message{Schema: remote.SchemaGroup, Data: []byte("late")}); err != nil {
		t.Fatal(err)
	}
	close(hold)
	if got := <-done; got.err != nil {
		t.Fatal(got.err)
	}
	if stats := second.Stats(); stats.Late != 1 {
		t.Fatalf("stats %+v, want one late answer", stats)
	}
	if _, err := second.Sample(ctx, j); err != nil { // waits for the purge of what was late
		t.Fatal(err)
	}
	if depth, err := r.conn.Depth(ctx, r.scope, bus.Traces); err != nil || depth.Messages != 0 {
		t.Fatalf("%+v, %v: the late answer stays on the bus", depth, err)
	}
}

func TestNewCoordinatorSupersedesRunningJobs(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	fleet := scripted("s")
	r.work("w", fleet, "s")
	adopt(t, r.fleet, 1, 0)
	j := job(0, 1, 0)
	reached := make(chan struct{})
	fleet.Inject(j.ID, rollouttest.Fault{Reached: reached, Hold: make(chan struct{})}) // never released
	first := sample(patient(t), r.fleet, j)
	<-reached
	r.fleet.Close()
	if got := <-first; !errors.Is(got.err, remote.ErrClosed) {
		t.Fatalf("got %v, want ErrClosed", got.err)
	}
	second := r.coordinator(2)
	adopt(t, second, 2, 0)
	j.Policy = offer(2, 0).Policy
	got := <-sample(patient(t), second, j)
	if got.err != nil {
		t.Fatal(got.err)
	}
	if got.group.PolicySent.Incarnation != 2 {
		t.Fatalf("sampled by %s", got.group.PolicySent)
	}
	// A job of the old incarnation that turns up now is thrown away unsampled.
	stale := job(7, 1, 0)
	queue := r.conn.Queue(r.scope)
	if _, err := queue.Put(patient(t), string(stale.ID), jobMessage(t, stale)); err != nil {
		t.Fatal(err)
	}
	if got := <-sample(patient(t), second, job(1, 2, 0)); got.err != nil {
		t.Fatal(got.err)
	}
	if fleet.Sampled(stale.ID) != 0 {
		t.Fatal("a job of a lower incarnation was sampled")
	}
}

func TestDropsKeepTheirReason(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	fleet := scripted("s")
	r.work("w", fleet, "s")
	adopt(t, r.fleet, 1, 0)
	for i, tt := range []struct {
		fault rollouttest.Fault
		want  rollout.Reason
	}{
		{rollouttest.Fault{Drop: rollout.ReasonUnavailable}, rollout.ReasonUnavailable},
		{rollouttest.Fault{Mangle: rollouttest.Garbage}, rollout.ReasonGarbage},
		{rollouttest.Fault{Mangle: rollouttest.Abort}, rollout.ReasonAborted},
		{rollouttest.Fault{Mangle: rollouttest.OtherPolicy}, rollout.ReasonStale},
		{rollouttest.Fault{Err: errors.New("broken"), Times: 3}, rollout.ReasonUnavailable},
	} {
		j := job(i, 1, 0)
		fleet.Inject(j.ID, tt.fault)
		_, err := r.fleet.Sample(patient(t), j)
		wantReason(t, err, tt.want)
		// The drop is not kept: asked again, the job is sampled again.
		if got := <-sample(patient(t), r.fleet, j); got.err != nil {
			t.Fatal(got.err)
		}
	}
	// A fleet that fails once is asked again before anything is dropped.
	j := job(99, 1, 0)
	fleet.Inject(j.ID, rollouttest.Fault{Err: errors.New("broken")})
	if got := <-sample(patient(t), r.fleet, j); got.err != nil || fleet.Sampled(j.ID) != 2 {
		t.Fatalf("%v after %d samplings", got.err, fleet.Sampled(j.ID))
	}
}

func TestBackPressure(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	if err := r.conn.Setup(patient(t), "run", bus.Limits{Traces: 5 << 20}); err != nil {
		t.Fatal(err)
	}
	long := func(q rollout.Question, seed int64, _ int, s rollout.Sampling) rollout.Trace {
		return rollout.Trace{Tokens: make([]int32, s.MaxTokens), Logprobs: make([]float32, s.MaxTokens), Text: q.ID}
	}
	r.work("w", rollouttest.NewScripted(rollouttest.Script{Servers: []string{"s"}, Answer: long}), "s")
	adopt(t, r.fleet, 1, 0)
	// Each group is 2.1 MB in three parts: two fit, the third waits for room.
	ctx := patient(t)
	results := make(chan result, 6)
	for i := range 6 {
		j := job(i, 1, 0)
		j.Sampling.MaxTokens = 1 << 16
		go func() { results <- <-sample(ctx, r.fleet, j) }()
	}
	for range 6 {
		got := <-results
		if got.err != nil {
			t.Fatal(got.err)
		}
		if got.group.Tokens() != 4<<16 || got.group.Traces[3].Text != got.group.QuestionID {
			t.Fatalf("%d tokens, text %q of %s", got.group.Tokens(), got.group.Traces[3].Text, got.group.QuestionID)
		}
		if depth, err := r.conn.Depth(ctx, r.scope, bus.Traces); err != nil || depth.Bytes > 5<<20 {
			t.Fatalf("%+v, %v", depth, err)
		}
		if err := r.fleet.Commit(ctx, []rollout.JobID{got.group.Job}); err != nil {
			t.Fatal(err)
		}
	}
	if depth, err := r.conn.Depth(ctx, r.scope, bus.Traces); err != nil || depth.Messages != 0 {
		t.Fatalf("%+v, %v: commit left something", depth, err)
	}
}

// A coordinator that was held up while another took over must not set the
// policy back: a worker that starts after it would follow the dead.
func TestOlderCoordinatorCannotOffer(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	r.work("w", scripted("s"), "s")
	adopt(t, r.fleet, 1, 0)
	second := r.coordinator(2)
	adopt(t, second, 2, 0)
	if _, err := r.fleet.Adopt(patient(t), offer(1, 1)); !errors.Is(err, remote.ErrSuperseded) {
		t.Fatalf("got %v, want ErrSuperseded", err)
	}
	if _, err := remote.NewFleet(patient(t), remote.FleetOptions{Conn: r.conn, Scope: r.scope, Log: r.log}); !errors.Is(err, remote.ErrSuperseded) {
		t.Fatalf("got %v, want ErrSuperseded", err)
	}
	second.Close()
	r.work("late", scripted("late"), "late")
	r.scope.Incarnation = 2
	r.atWork(2) // the one that starts now follows incarnation 2 as well
}

func TestEqualJobsShareAnAnswer(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	fleet := scripted("s")
	r.work("w", fleet, "s")
	adopt(t, r.fleet, 1, 0)
	j := job(0, 1, 0)
	reached, hold := make(chan struct{}), make(chan struct{})
	fleet.Inject(j.ID, rollouttest.Fault{Reached: reached, Hold: hold})
	leaver, leave := context.WithCancel(patient(t))
	two := sample(patient(t), r.fleet, j)
	<-reached
	one := sample(leaver, r.fleet, j) // joins, or is too late even to join: both harm nobody
	leave()
	if got := <-one; !errors.Is(got.err, context.Canceled) {
		t.Fatalf("got %v", got.err)
	}
	close(hold)
	got := <-two
	if got.err != nil {
		t.Fatal(got.err)
	}
	again, err := r.fleet.Sample(patient(t), j)
	if err != nil || !reflect.DeepEqual(again, got.group) || fleet.Sampled(j.ID) != 1 {
		t.Fatalf("sampled %d times, %v", fleet.Sampled(j.ID), err)
	}
}
