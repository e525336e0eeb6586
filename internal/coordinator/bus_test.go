package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/experiments"
	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/remote"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// busRing is a real JetStream server over the run directory, with two workers
// around scripted fleets, and the fleet that a coordinator sees.
type busRing struct {
	server      *bus.Server
	lease       *bus.Lease
	incarnation uint64
	fleet       *remote.Fleet
	conns       []*bus.Conn
	soft, hard  context.CancelFunc
	workers     sync.WaitGroup
	mu          sync.Mutex
	errs        []error
}

// startBus opens the bus of dir as a new incarnation. inner is what each of the
// two workers serves.
func startBus(ctx context.Context, dir string, inner ...rollout.Fleet) (*busRing, error) {
	r := &busRing{}
	var err error
	if r.server, err = bus.Start(bus.ServerOptions{Dir: filepath.Join(dir, "bus")}); err != nil {
		return nil, err
	}
	conn, err := r.connect(ctx, "coordinator")
	if err != nil {
		return r, err
	}
	if err := conn.Setup(ctx, "test", bus.Limits{}); err != nil {
		return r, err
	}
	r.lease, err = conn.Values("test").Acquire(ctx, bus.LeaseOptions{Key: "coordinator", Holder: "test", TakeOver: true})
	if err != nil {
		return r, err
	}
	r.incarnation = r.lease.Incarnation()
	r.fleet, err = remote.NewFleet(ctx, remote.FleetOptions{Conn: conn, MinWorkers: len(inner),
		Scope: bus.Scope{Run: "test", Incarnation: r.incarnation}})
	if err != nil {
		return r, err
	}
	var soft, hard context.Context
	soft, r.soft = context.WithCancel(context.Background())
	hard, r.hard = context.WithCancel(context.Background())
	for i, fleet := range inner {
		id := fmt.Sprintf("worker-%d-%d", r.incarnation, i)
		conn, err := r.connect(ctx, id)
		if err != nil {
			return r, err
		}
		worker, err := remote.NewWorker(remote.WorkerOptions{Conn: conn, Run: "test", ID: id, Fleet: fleet,
			Servers: []string{fmt.Sprintf("server-%d", i)}, Slots: 3, LeaseTTL: time.Second})
		if err != nil {
			return r, err
		}
		r.workers.Go(func() { r.failed(worker.Run(soft, hard)) })
	}
	return r, nil
}

func (r *busRing) connect(ctx context.Context, name string) (*bus.Conn, error) {
	conn, err := r.server.Connect(ctx, name, "")
	if err == nil {
		r.conns = append(r.conns, conn)
	}
	return conn, err
}

func (r *busRing) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

// stop ends workers, fleet and server, in this order.
func (r *busRing) stop(ctx context.Context) error {
	if r.soft != nil {
		r.soft()
		r.workers.Wait()
		r.hard()
	}
	if r.fleet != nil {
		r.fleet.Close()
	}
	if r.lease != nil {
		r.failed(r.lease.Release(ctx))
	}
	for _, conn := range r.conns {
		conn.Close()
	}
	r.server.Close()
	return errors.Join(r.errs...)
}

// onBus makes a kit whose jobs and traces go through JetStream. watch may wrap
// what the workers serve.
func onBus(ctx context.Context, dir string, change func(*kit, *trainertest.Script), watch func(rollout.Fleet) rollout.Fleet) (*kit, *busRing, error) {
	var r *busRing
	var busErr error
	k, err := newKit(dir, 0, func(k *kit, script *trainertest.Script) {
		change(k, script)
		second, err := newKit(dir, 0, change) // the same faults at the other worker
		if err != nil {
			busErr = err
			return
		}
		if r, busErr = startBus(ctx, dir, watch(k.fleet), watch(second.fleet)); busErr == nil {
			k.options.Parts.Fleet, k.options.Incarnation = r.fleet, r.incarnation
		}
	})
	return k, r, errors.Join(err, busErr)
}

// TestRingOverJetStream runs the whole ring through a real bus, into a real run
// directory, and compares it to the ring in memory: the same weights and
// metrics, although two workers share the jobs as they come.
func TestRingOverJetStream(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for staleness := range 3 {
		t.Run(fmt.Sprint("staleness ", staleness), func(t *testing.T) {
			memory := mustKit(t, t.TempDir(), 1, full(staleness))
			want := memory.finish(t)
			k, r, err := onBus(patient(t), t.TempDir(), full(staleness), func(f rollout.Fleet) rollout.Fleet { return f })
			if err != nil {
				t.Fatal(err)
			}
			got := k.finish(t)
			if err := r.stop(patient(t)); err != nil {
				t.Error(err)
			}
			sameRuns(t, want, got, memory.store, k.store)
		})
	}
}

// TestRunDirectoryIsAStore runs the ring into a run directory of package
// experiments, stops it, and resumes from what the directory itself says: it
// ends as an unbroken run does, with the same lines of metrics.
func TestRunDirectoryIsAStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs", "test")
	whole := mustKit(t, t.TempDir(), 1, full(1))
	want := whole.finish(t)
	got, err := runInto(t, dir, 1, 60)
	if !errors.Is(err, ErrStopped) {
		t.Fatalf("first run ended with %v, want it stopped", err)
	}
	if got, err = runInto(t, dir, 2, 0); err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.Digest || got.Counts != want.Counts {
		t.Errorf("ended with %+v, want %+v", got, want)
	}
	data, err := os.ReadFile(filepath.Join(dir, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	for text := range strings.Lines(string(data)) {
		var values map[string]any
		if err := json.Unmarshal([]byte(text), &values); err != nil {
			t.Fatal(err)
		}
		lines[compared(t, values)] = true
	}
	wanted, err := whole.store.lines()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range wanted {
		if !lines[text] {
			t.Errorf("%s of the unbroken run is not in metrics.jsonl", name)
		}
	}
	if len(lines) != len(wanted) {
		t.Errorf("%d lines of metrics, want %d", len(lines), len(wanted))
	}
}

// compared renders what of a line may be compared.
func compared(t *testing.T, values map[string]any) string {
	t.Helper()
	delete(values, "kind")
	for name := range values {
		if timing(name) {
			delete(values, name)
		}
	}
	text, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// runInto runs the full ring into the run directory dir until it ends, or until
// it is stopped at the event numbered stopAt.
func runInto(t *testing.T, dir string, incarnation uint64, stopAt int) (result Result, err error) {
	t.Helper()
	run, err := experiments.Open(experiments.Spec{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	point, err := run.Resume()
	if err != nil {
		t.Fatal(err)
	}
	k := mustKit(t, t.TempDir(), incarnation, full(1))
	k.options.Parts.Store, k.options.Parts.Checkpoints = run, run
	if point != nil {
		k.options.Resume = &Point{Dir: point.Dir, State: point.State}
	}
	admit, stop := context.WithCancel(t.Context())
	defer stop()
	seen := 0
	k.events.hook = func(telemetry.Event) {
		k.events.mu.Lock()
		defer k.events.mu.Unlock()
		if seen++; seen == stopAt {
			stop()
		}
	}
	return k.run(patient(t), admit)
}
