package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
)

// put stores a task and wants it fresh or not.
func put(t *testing.T, q *bus.Queue, key string, fresh bool) {
	t.Helper()
	got, err := q.Put(patient(t), key, message("task "+key))
	if err != nil || got != fresh {
		t.Fatalf("putting %s: fresh %v, %v, want %v", key, got, err, fresh)
	}
}

// next takes a task and checks which.
func next(t *testing.T, q *bus.Queue, key string) *bus.Task {
	t.Helper()
	task, err := q.Next(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	if task.Key != key || string(task.Message.Data) != "task "+key {
		t.Fatalf("got task %s with %q, want %s", task.Key, task.Message.Data, key)
	}
	return task
}

func TestQueueHoldsATaskOnce(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	q := conn.Queue(scope(5))
	put(t, q, "a", true)
	put(t, q, "a", false)
	put(t, q, "b", true)
	a := next(t, q, "a")
	if a.Incarnation != 5 || a.Delivered != 1 {
		t.Fatalf("incarnation %d, delivered %d", a.Incarnation, a.Delivered)
	}
	put(t, q, "a", false) // still on the queue while somebody works on it
	if err := a.Done(patient(t)); err != nil {
		t.Fatal(err)
	}
	put(t, q, "a", true)
	if err := q.Remove(patient(t), "b"); err != nil {
		t.Fatal(err)
	}
	if err := q.Remove(patient(t), "b"); err != nil {
		t.Fatalf("removing nothing: %v", err)
	}
	next(t, q, "a") // b is gone
}

func TestReturnedTaskComesBack(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	q := conn.Queue(scope(1))
	put(t, q, "a", true)
	if err := next(t, q, "a").Return(0); err != nil {
		t.Fatal(err)
	}
	again := next(t, q, "a")
	if again.Delivered != 2 {
		t.Fatalf("delivered %d times", again.Delivered)
	}
	if err := again.Drop("nobody wants it"); err != nil {
		t.Fatal(err)
	}
	put(t, q, "b", true)
	next(t, q, "b")
}

func TestHeldTaskStaysAndHungOneGoes(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	q := conn.Queue(scope(1))
	put(t, q, "held", true)
	held := next(t, q, "held")
	progress, release := held.Hold(time.Hour)
	progress()
	defer release()
	put(t, q, "hung", true)
	hung := next(t, q, "hung")
	_, releaseHung := hung.Hold(time.Nanosecond) // no progress is ever marked
	defer releaseHung()
	// The hung one comes back after AckWait; by then the held one would have.
	back := next(t, q, "hung")
	if back.Delivered != 2 {
		t.Fatalf("delivered %d times", back.Delivered)
	}
	if err := back.Done(patient(t)); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), bus.AckWait)
	defer cancel()
	if task, err := q.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v was handed out twice (%v)", task, err)
	}
	if err := held.Done(patient(t)); err != nil {
		t.Fatal(err)
	}
	if err := hung.Done(patient(t)); err != nil {
		t.Fatalf("a late Done is no error: %v", err)
	}
}

func TestDeadTakersTaskGoesElsewhere(t *testing.T) {
	noLeaks(t)
	server, conn := start(t, bus.Limits{})
	q := conn.Queue(scope(1))
	put(t, q, "a", true)
	dead := connectTo(t, server, "")
	task := next(t, dead.Queue(scope(1)), "a")
	_, release := task.Hold(time.Hour)
	dead.Close()
	if again := next(t, q, "a"); again.Delivered != 2 {
		t.Fatalf("delivered %d times", again.Delivered)
	}
	release()
}

func TestQueueRefuses(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	ctx := patient(t)
	if _, err := conn.Queue(scope(1)).Put(ctx, "a.b", message("")); !errors.Is(err, bus.ErrName) {
		t.Errorf("got %v, want ErrName", err)
	}
	if _, err := conn.Queue(scope(0)).Put(ctx, "a", message("")); !errors.Is(err, bus.ErrName) {
		t.Errorf("got %v, want ErrName", err)
	}
	if _, err := conn.Queue(scope(1)).Put(ctx, "a", bus.Message{Data: make([]byte, bus.MaxTask+1)}); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
	if err := conn.Setup(ctx, "a b", bus.Limits{}); !errors.Is(err, bus.ErrName) {
		t.Errorf("got %v, want ErrName", err)
	}
}

func TestNextWaitsForTheCoordinator(t *testing.T) {
	noLeaks(t)
	server, err := bus.Start(bus.ServerOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	conn := connectTo(t, server, "")
	got := make(chan error, 1)
	go func() {
		_, err := conn.Queue(scope(1)).Next(patient(t)) // nothing is set up yet
		got <- err
	}()
	if err := conn.Setup(patient(t), "r", bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	put(t, conn.Queue(scope(1)), "a", true)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestPurgeOlder(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	ctx := patient(t)
	for e := uint64(1); e <= 3; e++ {
		put(t, conn.Queue(scope(e)), "job", true)
		if _, err := conn.Log(scope(e), bus.Traces).Create(ctx, "job", bus.Message{Data: noise(bus.PartBytes + 1)}); err != nil {
			t.Fatal(err)
		}
		if err := conn.Log(scope(e), bus.Events).Append(ctx, "worker.w", message("alive")); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Setup(ctx, "other", bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	other := bus.Scope{Run: "other", Incarnation: 1}
	if _, err := conn.Log(other, bus.Traces).Create(ctx, "job", message("theirs")); err != nil {
		t.Fatal(err)
	}
	purged, err := conn.PurgeOlder(ctx, scope(3))
	if err != nil || purged != 10 { // twice: a job, a manifest with two parts, an event
		t.Fatalf("purged %d, %v", purged, err)
	}
	for _, kind := range []bus.Kind{bus.Jobs, bus.Traces, bus.Events} {
		for e, want := range map[uint64]bool{1: false, 2: false, 3: true} {
			depth, err := conn.Depth(ctx, scope(e), kind)
			if err != nil || depth.Messages > 0 != want {
				t.Errorf("%s of incarnation %d: %d messages, %v", kind, e, depth.Messages, err)
			}
		}
	}
	if _, err := conn.Log(other, bus.Traces).Get(ctx, "job"); err != nil {
		t.Fatalf("another run's trace: %v", err)
	}
	if task := next(t, conn.Queue(scope(3)), "job"); task.Incarnation != 3 {
		t.Fatalf("a job of incarnation %d is left", task.Incarnation)
	}
}

// TestRestartKeepsWhatWasAcknowledged stops the server and opens its store
// again: values, tasks and the create-only guard are still there.
func TestRestartKeepsWhatWasAcknowledged(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	open := func() (*bus.Server, *bus.Conn) {
		server, err := bus.Start(bus.ServerOptions{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Close)
		conn := connectTo(t, server, "")
		if err := conn.Setup(patient(t), "r", bus.Limits{}); err != nil {
			t.Fatal(err)
		}
		return server, conn
	}
	server, conn := open()
	ctx := patient(t)
	data := noise(3*bus.PartBytes + 5)
	put(t, conn.Queue(scope(1)), "task", true)
	if _, err := conn.Log(scope(1), bus.Traces).Create(ctx, "value", bus.Message{Schema: "s/1", Data: data}); err != nil {
		t.Fatal(err)
	}
	revision, err := conn.Values("r").Put(ctx, "policy", []byte("p"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	server.Close()

	_, conn = open()
	if m, err := conn.Log(scope(1), bus.Traces).Get(ctx, "value"); err != nil || !bytes.Equal(m.Data, data) {
		t.Fatalf("%d bytes, %v", len(m.Data), err)
	}
	if created, err := conn.Log(scope(1), bus.Traces).Create(ctx, "value", message("again")); err != nil || created {
		t.Fatalf("created %v, %v", created, err)
	}
	if v, err := conn.Values("r").Get(ctx, "policy"); err != nil || v.Revision != revision {
		t.Fatalf("%+v, %v", v, err)
	}
	put(t, conn.Queue(scope(1)), "task", false)
	next(t, conn.Queue(scope(1)), "task")
}

func TestFollowSurvivesARestart(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	address := freeAddress(t)
	serve := func() *bus.Server {
		server, err := bus.Start(bus.ServerOptions{Dir: dir, Listen: address})
		if err != nil {
			t.Fatal(err)
		}
		return server
	}
	server := serve()
	conn, err := bus.Dial(patient(t), bus.DialOptions{URL: server.URL(), Name: "follower"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if err := conn.Setup(patient(t), "r", bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	log := conn.Log(scope(1), bus.Traces)
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	keys, done := make(chan string, 10), make(chan error, 1)
	go func() {
		done <- log.Follow(ctx, "*", func(e bus.Entry) error { keys <- e.Key; return nil }, nil)
	}()
	for i := range 3 {
		key := fmt.Sprint("k", i)
		if _, err := log.Create(patient(t), key, message(key)); err != nil {
			t.Fatal(err)
		}
		if got := <-keys; got != key {
			t.Fatalf("got %s, want %s: lost or doubled", got, key)
		}
		server.Close()
		server = serve()
	}
	cancel()
	<-done
	conn.Close()
	server.Close()
}
