package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/bus"
)

// draw returns a value of a small, or now and then of a large, size that tells
// who wrote it.
func draw(r *rapid.T, serial int) []byte {
	size := rapid.SampledFrom([]int{0, 1, 2, 3, 40, 100, 500, 1000, 3000, 9000, bus.PartBytes, bus.PartBytes + 1}).Draw(r, "bytes")
	return append(fmt.Appendf(nil, "%d:", serial), make([]byte, size)...)
}

// A log is a map of create-only values: whatever is created, read and purged in
// whatever order, by two connections, it holds what the map holds, and Follow
// tells each value once, in the order of its creation.
func TestLogAgainstAMap(t *testing.T) {
	noLeaks(t)
	server, first := start(t, bus.Limits{})
	conns := []*bus.Conn{first, connectTo(t, server, "")}
	ctx := patient(t)
	serial := 0
	rapid.Check(t, func(r *rapid.T) {
		serial++ // every schedule has its own incarnation
		own := scope(uint64(serial))
		held := map[string][]byte{}
		var written []string
		for i := range rapid.IntRange(1, 12).Draw(r, "operations") {
			log := rapid.SampledFrom(conns).Draw(r, "connection").Log(own, bus.Traces)
			key := rapid.SampledFrom([]string{"a", "b", "c", "part-x"}).Draw(r, "key")
			switch rapid.IntRange(0, 5).Draw(r, "operation") {
			case 0, 1, 2:
				data := draw(r, i)
				created, err := log.Create(ctx, key, bus.Message{Schema: "s/1", Data: data})
				if _, taken := held[key]; err != nil || created == taken {
					r.Fatalf("creating %s: %v, %v, taken %v", key, created, err, taken)
				}
				if created {
					held[key] = data
					written = append(written, key+string(data[:2]))
				}
			case 3:
				if err := log.Purge(ctx, key); err != nil {
					r.Fatal(err)
				}
				if _, ok := held[key]; ok { // Follow will not see it any more
					written = slices.DeleteFunc(written, func(w string) bool { return w == key+string(held[key][:2]) })
				}
				delete(held, key)
			default:
				got, err := log.Get(ctx, key)
				want, ok := held[key]
				if ok != (err == nil) || !ok && !errors.Is(err, bus.ErrNotFound) || !bytes.Equal(got.Data, want) {
					r.Fatalf("reading %s: %d bytes, %v, want %d", key, len(got.Data), err, len(want))
				}
			}
		}
		if _, err := first.Log(own, bus.Traces).Create(ctx, "end", message("x")); err != nil {
			r.Fatal(err)
		}
		var seen []string
		done := errors.New("seen all")
		err := conns[1].Log(own, bus.Traces).Follow(ctx, "*", func(e bus.Entry) error {
			if e.Key == "end" {
				return done
			}
			seen = append(seen, e.Key+string(e.Message.Data[:2]))
			return nil
		}, func(err error) { r.Errorf("unreadable: %v", err) })
		if !errors.Is(err, done) || !slices.Equal(seen, written) {
			r.Fatalf("followed %q, want %q: %v", seen, written, err)
		}
		if _, err := first.PurgeOlder(ctx, scope(uint64(serial)+1)); err != nil {
			r.Fatal(err)
		}
	})
}

// queueModel is what a queue should hold: tasks that wait, and those in hands.
type queueModel struct {
	r       *rapid.T
	ctx     context.Context
	queues  [2]*bus.Queue // of two connections
	e       uint64        // the schedule's own incarnation
	waiting map[string]bool
	taken   map[string]*bus.Task
	release []func()
}

// queue is that of either connection.
func (m *queueModel) queue() *bus.Queue {
	return m.queues[rapid.IntRange(0, 1).Draw(m.r, "connection")]
}

// hands lists the keys of the tasks in hands.
func (m *queueModel) hands() []string { return slices.Sorted(maps.Keys(m.taken)) }

func (m *queueModel) put(key string) {
	fresh, err := m.queue().Put(m.ctx, key, message(key))
	if err != nil || fresh == (m.waiting[key] || m.taken[key] != nil) {
		m.r.Fatalf("putting %s: fresh %v, %v; waiting %v, taken %v", key, fresh, err, m.waiting[key], m.taken[key] != nil)
	}
	if fresh {
		m.waiting[key] = true
	}
}

func (m *queueModel) take() {
	task, err := m.queue().Next(m.ctx)
	if err != nil {
		m.r.Fatal(err)
	}
	if !m.waiting[task.Key] || m.taken[task.Key] != nil || task.Incarnation != m.e || string(task.Message.Data) != task.Key {
		m.r.Fatalf("given %s of %d with %q; waiting %v, taken %v", task.Key, task.Incarnation, task.Message.Data, m.waiting, m.hands())
	}
	delete(m.waiting, task.Key)
	m.taken[task.Key] = task
	_, release := task.Hold(patience)
	m.release = append(m.release, release)
}

func (m *queueModel) remove(key string) {
	if err := m.queue().Remove(m.ctx, key); err != nil {
		m.r.Fatal(err)
	}
	delete(m.waiting, key)
	delete(m.taken, key) // its taker may go on, for nobody
}

// settle finishes a task or gives it back.
func (m *queueModel) settle(key string, done bool) {
	task := m.taken[key]
	delete(m.taken, key)
	err := error(nil)
	if done {
		err = task.Done(m.ctx)
	} else {
		err = task.Return(0)
		m.waiting[key] = true
	}
	if err != nil {
		m.r.Fatal(err)
	}
}

// A queue is a set of tasks, each in at most one pair of hands: under any
// schedule of putting, taking, finishing, returning and removing, no task is
// lost, doubled or given to two takers.
func TestQueueAgainstASet(t *testing.T) {
	noLeaks(t)
	server, first := start(t, bus.Limits{})
	second, ctx, e := connectTo(t, server, ""), patient(t), uint64(0)
	rapid.Check(t, func(r *rapid.T) {
		e++
		if _, err := first.PurgeOlder(ctx, scope(e)); err != nil { // a failed schedule leaves tasks
			r.Fatal(err)
		}
		m := &queueModel{r: r, ctx: ctx, queues: [2]*bus.Queue{first.Queue(scope(e)), second.Queue(scope(e))}, e: e,
			waiting: map[string]bool{}, taken: map[string]*bus.Task{}}
		defer func() {
			for _, release := range m.release {
				release()
			}
		}()
		for range rapid.IntRange(1, 25).Draw(r, "operations") {
			key := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(r, "key")
			switch op := rapid.IntRange(0, 9).Draw(r, "operation"); {
			case op < 4:
				m.put(key)
			case op < 7 && len(m.waiting) > 0:
				m.take()
			case op == 7:
				m.remove(key)
			case len(m.taken) > 0:
				m.settle(rapid.SampledFrom(m.hands()).Draw(r, "taken"), rapid.Bool().Draw(r, "done"))
			}
		}
		for len(m.waiting) > 0 {
			m.take()
		}
		for _, key := range m.hands() {
			m.settle(key, true)
		}
		if depth, err := first.Depth(ctx, scope(e), bus.Jobs); err != nil || depth.Messages != 0 {
			r.Fatalf("%d tasks left in the queue, %v", depth.Messages, err)
		}
	})
}

// Removing one task, in hands or not, or many, delays no other: a returned one
// comes before its first taker's time is over.
func TestRemovingDelaysNobody(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	q := conn.Queue(scope(1))
	held := map[string]*bus.Task{}
	for _, key := range []string{"b", "c", "d", "a", "waiting"} {
		put(t, q, key, true)
		if key != "waiting" {
			held[key] = next(t, q, key)
			_, release := held[key].Hold(patience)
			defer release()
		}
	}
	for _, key := range []string{"a", "waiting", "never"} {
		if err := q.Remove(patient(t), key); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	for range 3 {
		if err := held["d"].Return(0); err != nil {
			t.Fatal(err)
		}
		if err := q.Remove(patient(t), "c"); err != nil {
			t.Fatal(err)
		}
		held["d"] = next(t, q, "d")
	}
	if took := time.Since(began); took >= bus.AckWait || held["d"].Delivered != 4 {
		t.Errorf("delivered %d times within %s; a taker's time is %s", held["d"].Delivered, took, bus.AckWait)
	}
}

// Tasks that are finished and removed at the same time are gone, without error.
func TestRemoveMeetsDone(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	q := conn.Queue(scope(1))
	for i := range 60 {
		key := fmt.Sprint("t", i)
		put(t, q, key, true)
		task := next(t, q, key)
		removed := make(chan error, 1)
		go func() { removed <- q.Remove(patient(t), key) }()
		done := task.Done(patient(t))
		if err := errors.Join(<-removed, done); err != nil {
			t.Fatal(err)
		}
	}
}

// Values against a map, the empty value, which is no deletion, included.
func TestValuesAgainstAMap(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	ctx := patient(t)
	values := conn.Values("r")
	held, last := map[string]string{}, uint64(0)
	rapid.Check(t, func(r *rapid.T) {
		key := rapid.SampledFrom([]string{"a", "a.b", "a.c", "b"}).Draw(r, "key")
		text := rapid.SampledFrom([]string{"", "x", "longer"}).Draw(r, "text")
		present, known := held[key]
		var revision uint64
		var err error
		if rapid.Bool().Draw(r, "update") {
			revision, err = values.Update(ctx, key, func(data []byte) ([]byte, error) {
				if string(data) != present || (data != nil) != known {
					r.Fatalf("%s is %q (there: %v), want %q (%v)", key, data, data != nil, present, known)
				}
				return []byte(text), nil
			})
		} else {
			revision, err = values.Put(ctx, key, []byte(text))
		}
		if err != nil || revision <= last {
			r.Fatalf("revision %d after %d, %v", revision, last, err)
		}
		held[key], last = text, revision
		got, err := values.Get(ctx, key)
		if err != nil || string(got.Data) != text || got.Data == nil || got.Revision != revision {
			r.Fatalf("%s: %+v, %v, want %q at %d", key, got, err, text, revision)
		}
		enough, inner := errors.New("enough"), ctx
		if err := values.Watch(inner, key, func(v bus.Value) error {
			if v.Data == nil || string(v.Data) != text {
				return fmt.Errorf("watched %q (there: %v), want %q", v.Data, v.Data != nil, text)
			}
			return enough
		}); !errors.Is(err, enough) {
			r.Fatal(err)
		}
	})
}

// A key that is no name reaches nothing: least of all is a wildcard taken for
// one where it would purge.
func TestWildcardsAreNoKeys(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	ctx := patient(t)
	log, queue, values := conn.Log(scope(1), bus.Traces), conn.Queue(scope(1)), conn.Values("r")
	if _, err := log.Create(ctx, "a", message("kept")); err != nil {
		t.Fatal(err)
	}
	if _, err := queue.Put(ctx, "a", message("kept")); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"*", ">", "a.>", "a.*", "", ".", "a..b", "a b", "a\n", "ä", "a.part-1"} {
		_, created := log.Create(ctx, key, message("x"))
		_, read := log.Get(ctx, key)
		_, put := queue.Put(ctx, key, message("x"))
		_, value := values.Put(ctx, key, nil)
		_, got := values.Get(ctx, key)
		for what, err := range map[string]error{"create": created, "append": log.Append(ctx, key, message("x")), "get": read, "purge": log.Purge(ctx, key),
			"put": put, "remove": queue.Remove(ctx, key), "value": value, "read": got} {
			if !errors.Is(err, bus.ErrName) {
				t.Errorf("%s %q: %v", what, key, err)
			}
		}
	}
	for kind, want := range map[bus.Kind]uint64{bus.Traces: 1, bus.Jobs: 1} {
		if depth, err := conn.Depth(context.WithoutCancel(ctx), scope(1), kind); err != nil || depth.Messages != want {
			t.Errorf("%s holds %d, %v", kind, depth.Messages, err)
		}
	}
}
