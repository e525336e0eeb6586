package remote_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/remote"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

// patience bounds every test; none passes by reaching it.
const patience = time.Minute

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// noLeaks checks, after everything that the test registers later, that no
// goroutine is left.
func noLeaks(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// jobMessage renders a job as the coordinator does.
func jobMessage(t *testing.T, j rollout.Job) bus.Message {
	t.Helper()
	data, err := json.Marshal(map[string]any{"version": 1, "job": j})
	if err != nil {
		t.Fatal(err)
	}
	return bus.Message{Schema: remote.SchemaJob, Data: data}
}

// ring is a bus with a coordinator's fleet and any number of workers.
type ring struct {
	t      testing.TB
	server *bus.Server
	conn   *bus.Conn
	scope  bus.Scope
	fleet  *remote.Fleet
	log    *slog.Logger
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(testWriter{t}, nil)) }

// newRing starts a bus and the fleet of incarnation 1.
func newRing(t testing.TB) *ring {
	t.Helper()
	server, err := bus.Start(bus.ServerOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	r := &ring{t: t, server: server, scope: bus.Scope{Run: "run", Incarnation: 1}, log: testLog(t)}
	r.conn = r.connect("coordinator")
	if err := r.conn.Setup(patient(t), r.scope.Run, bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	r.fleet = r.coordinator(1)
	return r
}

func (r *ring) connect(name string) *bus.Conn {
	r.t.Helper()
	conn, err := r.server.Connect(patient(r.t), name, "")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(conn.Close)
	return conn
}

// coordinator makes the fleet of incarnation e.
func (r *ring) coordinator(e uint64) *remote.Fleet {
	r.t.Helper()
	fleet, err := remote.NewFleet(patient(r.t), remote.FleetOptions{
		Conn: r.conn, Scope: bus.Scope{Run: "run", Incarnation: e}, Log: r.log,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(fleet.Close)
	return fleet
}

// running is a worker in a test.
type running struct {
	conn       *bus.Conn
	soft, hard context.CancelFunc
	done       chan error
}

// kill cuts the worker off as SIGKILL would: no goodbye, no job given back.
func (w *running) kill() {
	w.conn.Close()
	w.hard()
}

// work starts a worker around inner.
func (r *ring) work(id string, inner rollout.Fleet, servers ...string) *running {
	r.t.Helper()
	if len(servers) == 0 {
		servers = []string{"server-of-" + id}
	}
	return r.workWith(remote.WorkerOptions{ID: id, Fleet: inner, Servers: servers})
}

// workWith starts a worker with options of its own.
func (r *ring) workWith(options remote.WorkerOptions) *running {
	r.t.Helper()
	conn := r.connect(options.ID)
	options.Conn, options.Run, options.Log = conn, "run", r.log.With("worker", options.ID)
	worker, err := remote.NewWorker(options)
	if err != nil {
		r.t.Fatal(err)
	}
	soft, stop := context.WithCancel(context.Background())
	hard, kill := context.WithCancel(context.Background())
	w := &running{conn: conn, soft: stop, hard: kill, done: make(chan error, 1)}
	go func() { w.done <- worker.Run(soft, hard) }()
	r.t.Cleanup(func() {
		stop()
		kill()
		<-w.done
	})
	return w
}

// scripted makes an inner fleet of one server.
func scripted(server string) *rollouttest.Scripted {
	return rollouttest.NewScripted(rollouttest.Script{Servers: []string{server}})
}

// offer makes policy version of incarnation e.
func offer(e uint64, version int) rollout.Offer {
	return rollout.Offer{
		Policy:    rollout.Policy{Incarnation: e, Version: version, Digest: fmt.Sprintf("%064d", version)},
		Transport: rollout.ByDirectory, Path: "/weights",
	}
}

// job makes the i-th job under the policy of offer(e, version).
func job(i int, e uint64, version int) rollout.Job {
	q := rollouttest.Question(i)
	return rollout.Job{
		ID: rollout.JobID(fmt.Sprintf("job-%d", i)), Stage: "rl", Index: i, Question: q, Policy: offer(e, version).Policy, Purpose: rollout.Train,
		Sampling: rollout.Sampling{Traces: 4, Temperature: 1, TopP: 1, MaxTokens: 64, Seed: rollout.BaseSeed(1, "rl", q.ID, 0, 0)},
	}
}

// adopt offers policy version of incarnation e and wants it live everywhere.
func adopt(t testing.TB, fleet rollout.Fleet, e uint64, version int) {
	t.Helper()
	adopted, err := fleet.Adopt(patient(t), offer(e, version))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range adopted.Servers {
		if s.Err != "" {
			t.Fatalf("server %s: %s", s.Server, s.Err)
		}
	}
}

func TestRemoteConforms(t *testing.T) {
	for workers := 1; workers <= 3; workers += 2 {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			rollouttest.Run(t, func(t *testing.T) rollouttest.Setup {
				r := newRing(t)
				for i := range workers {
					r.work(fmt.Sprintf("w%d", i), scripted(fmt.Sprintf("s%d", i)))
				}
				return rollouttest.Setup{
					Fleet: r.fleet,
					Offer: func(_ *testing.T, version int) rollout.Offer { return offer(1, version) },
				}
			})
		})
	}
}

// options describe a worker of one server that bears its name.
func options(id string, inner rollout.Fleet, slots int) remote.WorkerOptions {
	return remote.WorkerOptions{ID: id, Fleet: inner, Servers: []string{id}, Slots: slots}
}
