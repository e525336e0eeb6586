package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// childKey names the environment variable that makes the test binary a child:
// one whole run over the directory it holds.
const childKey = "COORDINATOR_TEST_CHILD"

// child is what a child is told.
type child struct {
	Dir         string
	Incarnation uint64
	Staleness   int
	KillAt      int64 // moment at which it kills itself; 0 is never
	Bus         bool  // over a JetStream server of its own, whose store is in Dir
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childKey); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// moments counts what happens in a child, and ends the process in the middle
// of the KillAt-th of them: before or after a write, while a job is sampled, a
// step taken, a checkpoint written, an event told. No clock is involved.
type moments struct {
	count  atomic.Int64
	killAt int64
}

func (m *moments) pass() {
	if m.count.Add(1) == m.killAt {
		// SIGKILL cannot be caught: nothing of this process runs after it.
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {}
	}
}

// mortal is a fleet whose every call is a moment.
type mortal struct {
	rollout.Fleet
	m *moments
}

func (f mortal) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	f.m.pass()
	defer f.m.pass()
	return f.Fleet.Sample(ctx, job)
}

func (f mortal) Adopt(ctx context.Context, offer rollout.Offer) (rollout.Adopted, error) {
	defer f.m.pass()
	return f.Fleet.Adopt(ctx, offer)
}

// mortalTrainer is a trainer whose steps and scores are moments.
type mortalTrainer struct {
	trainer.Backend
	m *moments
}

func (b mortalTrainer) Step(ctx context.Context, step int, a trainer.Advantages) (trainer.Report, error) {
	b.m.pass()
	defer b.m.pass()
	return b.Backend.Step(ctx, step, a)
}

func runChild(text string) error {
	var c child
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	m := &moments{killAt: c.KillAt}
	k, err := newKit(c.Dir, c.Incarnation, m.change(c))
	if err != nil {
		return err
	}
	ctx := context.Background()
	stop := func(context.Context) error { return nil }
	if c.Bus {
		var over *busRing
		k, over, err = onBus(ctx, c.Dir, m.change(c), func(f rollout.Fleet) rollout.Fleet { return mortal{f, m} })
		if err != nil {
			return err
		}
		stop = over.stop
	} else {
		k.options.Parts.Fleet = mortal{k.fleet, m}
	}
	k.options.Parts.Backend = mortalTrainer{k.trainer, m}
	r, err := k.run(ctx, ctx)
	if err := errors.Join(err, stop(ctx)); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(childResult{Result: r, Moments: m.count.Load()})
}

// change is the full ring with moments in all of its parts but the fleet.
func (m *moments) change(c child) func(k *kit, script *trainertest.Script) {
	return func(k *kit, script *trainertest.Script) {
		full(c.Staleness)(k, script)
		script.OnWait = func(context.Context, int) error { m.pass(); return nil }
		k.store.hook = m.pass
		k.events.hook = func(telemetry.Event) { m.pass() }
	}
}

type childResult struct {
	Result
	Moments int64
}

// spawn runs a child. It says false when the child was killed.
func spawn(t *testing.T, c child) (childResult, bool) {
	t.Helper()
	order, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(patient(t), os.Args[0])
	cmd.Env = append(os.Environ(), childKey+"="+string(order))
	out, err := cmd.Output()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL && c.KillAt > 0 {
		return childResult{}, false
	}
	if err != nil {
		t.Fatalf("child %+v: %v\n%s", c, err, out)
	}
	var r childResult
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("child %+v answered %q: %v", c, out, err)
	}
	return r, true
}

// TestKilledAndResumed kills runs with SIGKILL at 5 seeded random moments each,
// one after the other on the same run directory, and compares what the last
// resume ends with to an unbroken run: the same weights, counts and metrics.
func TestKilledAndResumed(t *testing.T) {
	for staleness := range 3 {
		t.Run("staleness "+strconv.Itoa(staleness), func(t *testing.T) {
			t.Parallel()
			killedAndResumed(t, child{Staleness: staleness})
		})
	}
}

// TestKilledOverJetStream is the same with jobs and traces on a real bus, which
// dies with the coordinator and the workers and is opened again with them.
func TestKilledOverJetStream(t *testing.T) {
	killedAndResumed(t, child{Staleness: 1, Bus: true})
}

func killedAndResumed(t *testing.T, c child) {
	whole := t.TempDir()
	c.Dir, c.Incarnation = whole, 1
	want, _ := spawn(t, c)
	if want.Digest == "" || want.Moments < 100 {
		t.Fatalf("unbroken run: %+v", want)
	}
	rng := rand.New(rand.NewPCG(2026, uint64(c.Staleness)))
	dir := t.TempDir()
	killed := 0
	for i := range 5 {
		c.Dir, c.Incarnation, c.KillAt = dir, uint64(i+1), 1+rng.Int64N(want.Moments/3)
		if _, survived := spawn(t, c); !survived {
			killed++
		}
	}
	if killed == 0 {
		t.Fatal("no child was killed")
	}
	c.Incarnation, c.KillAt = 6, 0
	got, _ := spawn(t, c)
	t.Logf("%d of 5 children killed among %d moments", killed, want.Moments)
	sameRuns(t, want.Result, got.Result, &dirStore{dir: whole}, &dirStore{dir: dir})
	sameLedgers(t, whole, dir, c.Bus)
}

// TestKilledOnceAnywhere kills at one moment each, over the whole run.
func TestKilledOnceAnywhere(t *testing.T) {
	whole := t.TempDir()
	want, _ := spawn(t, child{Dir: whole, Incarnation: 1, Staleness: 1})
	rng := rand.New(rand.NewPCG(5, 5))
	for range 5 {
		dir := t.TempDir()
		at := 1 + rng.Int64N(want.Moments)
		if _, survived := spawn(t, child{Dir: dir, Incarnation: 1, Staleness: 1, KillAt: at}); survived {
			t.Logf("moment %d never came: another order of moments", at)
		}
		got, _ := spawn(t, child{Dir: dir, Incarnation: 2, Staleness: 1})
		sameRuns(t, want.Result, got.Result, &dirStore{dir: whole}, &dirStore{dir: dir})
		if t.Failed() {
			t.Fatalf("killed at moment %d of %d", at, want.Moments)
		}
	}
}

// sameLedgers compares every row of every step, incarnation left out, and where
// two servers share the work, the server too.
func sameLedgers(t *testing.T, want, got string, shared bool) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(want, "ledger/*.json"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no ledger in %s: %v", want, err)
	}
	for _, path := range found {
		step, err := strconv.Atoi(filepath.Base(path[:len(path)-len(".json")]))
		if err != nil {
			t.Fatal(err)
		}
		a, err := (&dirStore{dir: want}).ledgerRows(step)
		if err != nil {
			t.Fatal(err)
		}
		b, err := (&dirStore{dir: got}).ledgerRows(step)
		if err != nil {
			t.Fatal(err)
		}
		if len(a) != len(b) {
			t.Errorf("ledger of step %d: %d rows, want %d", step, len(b), len(a))
			continue
		}
		for i := range a {
			delete(a[i], "incarnation")
			delete(b[i], "incarnation")
			if shared {
				delete(a[i], "server")
				delete(b[i], "server")
			}
			x, y := fmt.Sprint(a[i]), fmt.Sprint(b[i])
			if x != y {
				t.Errorf("ledger of step %d row %d\n got %s\nwant %s", step, i, y, x)
			}
		}
	}
}
