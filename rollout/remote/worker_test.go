package remote_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/remote"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

func TestSoftStopFinishesWhatRuns(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	fleet := scripted("s")
	w := r.work("w", fleet, "s")
	adopt(t, r.fleet, 1, 0)
	j := job(0, 1, 0)
	reached, hold := make(chan struct{}), make(chan struct{})
	fleet.Inject(j.ID, rollouttest.Fault{Reached: reached, Hold: hold})
	done := sample(patient(t), r.fleet, j)
	<-reached
	w.soft()
	after := sample(patient(t), r.fleet, job(1, 1, 0)) // nobody takes it any more
	select {
	case err := <-w.done:
		t.Fatalf("worker ended with a job in hand: %v", err)
	case got := <-after:
		t.Fatalf("a stopping worker took a new job: %v", got.err)
	default:
	}
	close(hold)
	if got := <-done; got.err != nil {
		t.Fatal(got.err)
	}
	if err := <-w.done; err != nil {
		t.Fatal(err)
	}
	w.done <- nil // for the clean-up
	if fleet.Sampled("job-1") != 0 {
		t.Fatal("a stopping worker took a new job")
	}
	r.work("heir", fleet, "s") // at once: the lease was released
	if got := <-after; got.err != nil {
		t.Fatal(got.err)
	}
}

func TestHardStopGivesJobsBack(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	j := job(0, 1, 0)
	p := newPair(r, j.ID)
	r.atWork(2)
	done := sample(patient(t), r.fleet, j)
	stopped, heir := p.first()
	start := time.Now()
	p.workers[stopped].hard()
	<-p.reached[heir]
	if waited := time.Since(start); waited > bus.AckWait*9/10 {
		t.Logf("the job was elsewhere after %s: given back, or only expired?", waited)
	}
	close(p.release[heir])
	if got := <-done; got.err != nil {
		t.Fatal(got.err)
	}
}

func TestServerHasOneController(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	fleet := scripted("s")
	first := r.work("first", fleet, "s")
	r.atWork(1) // first reports only when it has its leases
	rival, err := remote.NewWorker(remote.WorkerOptions{
		Conn: r.connect("rival"), Run: "run", ID: "rival", Fleet: fleet, Servers: []string{"s"}, LeaseWait: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := rival.Run(patient(t), patient(t)); !errors.Is(err, bus.ErrHeld) || !strings.Contains(err.Error(), "by first") {
		t.Fatalf("got %v, want ErrHeld by first", err)
	}
	first.kill()
	taker := r.workWith(remote.WorkerOptions{ID: "taker", Fleet: fleet, Servers: []string{"s"}, TakeOver: true})
	if got := <-sample(patient(t), r.fleet, job(1, 1, 0)); got.err != nil {
		t.Fatal(got.err)
	}
	taker.kill()
	r.work("heir", fleet, "s") // waits until the lease of the dead has expired
	if got := <-sample(patient(t), r.fleet, job(0, 1, 0)); got.err != nil {
		t.Fatal(got.err)
	}
}

func TestAdoptVerdict(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	good, bad := scripted("good"), scripted("bad")
	r.work("w1", good, "good")
	r.work("w2", bad, "bad")
	r.atWork(2)
	bad.FailAdopt("bad", 1)
	adopted, err := r.fleet.Adopt(patient(t), offer(1, 1)) // 1 of 2 is not more than half
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) || quorum.Need != 2 || len(adopted.Servers) != 2 {
		t.Fatalf("%+v, %v", adopted, err)
	}
	if adopted.Servers[0].Server != "bad" || adopted.Servers[0].Err == "" || adopted.Servers[1].Err != "" {
		t.Fatalf("%+v", adopted.Servers)
	}
	for i := range 4 { // the worker that failed takes no job
		if got := <-sample(patient(t), r.fleet, job(i, 1, 1)); got.err != nil || got.group.Server != "good" {
			t.Fatalf("server %q, %v", got.group.Server, got.err)
		}
	}
	adopt(t, r.fleet, 1, 1) // the same offer again: now both
	if _, err := r.fleet.Adopt(patient(t), offer(1, 0)); err == nil {
		t.Fatal("went back to an older policy")
	}
}

// A worker that misses the quorum of its own fleet takes no jobs: its server that
// is well counts as failed too, or a run would go on with nobody to sample.
func TestAdoptCountsServersThatWillSample(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	short := rollouttest.NewScripted(rollouttest.Script{Servers: []string{"a", "b"}}) // wants both
	r.workWith(remote.WorkerOptions{ID: "w1", Fleet: short, Servers: []string{"a", "b"}})
	r.work("w2", scripted("c"), "c")
	r.atWork(2)
	short.FailAdopt("b", 1)
	adopted, err := r.fleet.Adopt(patient(t), offer(1, 0)) // only c samples: 1 of 3
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) || quorum.Need != 2 {
		t.Fatalf("%+v, %v", adopted, err)
	}
	if a := adopted.Servers[0]; a.Server != "a" || !strings.Contains(a.Err, "worker w1: ") {
		t.Fatalf("%+v", adopted.Servers)
	}
	adopt(t, r.fleet, 1, 0) // the same offer again: now all
}

func TestAdoptCountsTheSilentAsFailed(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	r.work("w1", scripted("s1"), "s1")
	r.work("w2", scripted("s2"), "s2")
	dead := r.work("w3", scripted("s3"), "s3")
	r.atWork(3)
	dead.kill()
	adopted, err := r.fleet.Adopt(patient(t), offer(1, 1)) // 2 of 3 is a quorum
	if err != nil {
		t.Fatal(err)
	}
	if len(adopted.Servers) != 3 || !strings.Contains(adopted.Servers[2].Err, "did not report") {
		t.Fatalf("%+v", adopted.Servers)
	}
}

func TestAdoptWaitsForJobsInFlight(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	fleet := scripted("s")
	r.work("w", fleet, "s")
	r.atWork(1)
	held := job(0, 1, 0)
	reached, hold := make(chan struct{}), make(chan struct{})
	fleet.Inject(held.ID, rollouttest.Fault{Reached: reached, Hold: hold})
	done := sample(patient(t), r.fleet, held)
	<-reached
	adopted := make(chan error, 1)
	go func() {
		_, err := r.fleet.Adopt(patient(t), offer(1, 1))
		adopted <- err
	}()
	early := sample(patient(t), r.fleet, job(1, 1, 1)) // waits for the new policy
	if got := <-sample(patient(t), r.fleet, job(2, 1, 0)); got.err != nil {
		t.Fatalf("a job of the old policy was refused before the new one was live: %v", got.err)
	}
	select {
	case err := <-adopted:
		t.Fatalf("adopted while a job of the old policy ran: %v", err)
	default:
	}
	close(hold)
	if got := <-done; got.err != nil {
		t.Fatal(got.err)
	}
	if err := <-adopted; err != nil {
		t.Fatal(err)
	}
	if got := <-early; got.err != nil {
		t.Fatal(got.err)
	}
}

func TestAdoptWithoutWorkersNamesWhatIsMissing(t *testing.T) {
	noLeaks(t)
	r := newRing(t)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := r.fleet.Adopt(ctx, offer(1, 0))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "0 of 1 workers") {
		t.Fatalf("got %v", err)
	}
}

// TestBusRestart stops the server, as when the coordinator's process dies, and
// starts it on the same store and address.
func TestBusRestart(t *testing.T) {
	noLeaks(t)
	dir, address := t.TempDir(), freeAddress(t)
	serve := func() *bus.Server {
		server, err := bus.Start(bus.ServerOptions{Dir: dir, Listen: address})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Close)
		return server
	}
	first := serve()
	dial := func(name string) *bus.Conn {
		conn, err := bus.Dial(patient(t), bus.DialOptions{URL: first.URL(), Name: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Close)
		return conn
	}
	r := &ring{t: t, server: first, conn: dial("coordinator"), scope: bus.Scope{Run: "run", Incarnation: 1}, log: testLog(t)}
	if err := r.conn.Setup(patient(t), "run", bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	r.fleet = r.coordinator(1)
	fleet := scripted("s")
	worker, err := remote.NewWorker(remote.WorkerOptions{Conn: dial("w"), Run: "run", ID: "w", Fleet: fleet, Servers: []string{"s"}, Log: r.log})
	if err != nil {
		t.Fatal(err)
	}
	soft, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(soft, soft) }()
	t.Cleanup(func() { stop(); <-ended })
	adopt(t, r.fleet, 1, 0)
	j := job(0, 1, 0)
	reached, hold := make(chan struct{}), make(chan struct{})
	fleet.Inject(j.ID, rollouttest.Fault{Reached: reached, Hold: hold})
	done := sample(patient(t), r.fleet, j)
	<-reached
	first.Close()
	close(hold) // the answer meets a bus that is not there
	serve()
	if got := <-done; got.err != nil {
		t.Fatal(got.err)
	}
	if got := <-sample(patient(t), r.fleet, job(1, 1, 0)); got.err != nil {
		t.Fatal(got.err)
	}
}

// freeAddress finds a loopback address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}()
	return listener.Addr().String()
}

func TestOptionsReportEverything(t *testing.T) {
	_, err := remote.NewWorker(remote.WorkerOptions{Run: "a b", Slots: -1})
	for _, want := range []string{"no connection", `"a b"`, "worker id", "no servers", "slots -1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %q", err, want)
		}
	}
	_, err = remote.NewFleet(patient(t), remote.FleetOptions{Quorum: -2})
	for _, want := range []string{"no connection", "run", "incarnation 0", "quorum -2"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %q", err, want)
		}
	}
}
