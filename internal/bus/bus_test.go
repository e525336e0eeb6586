package bus_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/bus"
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

// start runs a server and returns a connection that has set up run "r".
func start(t testing.TB, limits bus.Limits) (*bus.Server, *bus.Conn) {
	t.Helper()
	server, err := bus.Start(bus.ServerOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	conn := connectTo(t, server, "")
	if err := conn.Setup(patient(t), "r", limits); err != nil {
		t.Fatal(err)
	}
	return server, conn
}

func connectTo(t testing.TB, server *bus.Server, seed string) *bus.Conn {
	t.Helper()
	conn, err := server.Connect(patient(t), t.Name(), seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// scope is run "r" at incarnation e.
func scope(e uint64) bus.Scope { return bus.Scope{Run: "r", Incarnation: e} }

func message(text string) bus.Message { return bus.Message{Schema: "test/1", Data: []byte(text)} }

// freeAddress finds a loopback address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String()
}

// noise makes n bytes that do not compress.
func noise(n int) []byte {
	data := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	if _, err := rng.Read(data); err != nil {
		panic(err)
	}
	return data
}

func TestLogCreatesOnce(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	ctx := patient(t)
	log := conn.Log(scope(3), bus.Traces)
	if _, err := log.Get(ctx, "a"); !errors.Is(err, bus.ErrNotFound) {
		t.Fatalf("got %v, want ErrNotFound", err)
	}
	for i, want := range []bool{true, false} {
		created, err := log.Create(ctx, "a", message([]string{"first", "second"}[i]))
		if err != nil || created != want {
			t.Fatalf("create %d: %v, %v", i, created, err)
		}
	}
	got, err := log.Get(ctx, "a")
	if err != nil || string(got.Data) != "first" || got.Schema != "test/1" {
		t.Fatalf("got %q of %q, %v", got.Data, got.Schema, err)
	}
	// Another incarnation is another subject.
	if created, err := conn.Log(scope(4), bus.Traces).Create(ctx, "a", message("x")); err != nil || !created {
		t.Fatalf("%v, %v", created, err)
	}
	if err := log.Purge(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := log.Purge(ctx, "a"); err != nil {
		t.Fatalf("purging nothing: %v", err)
	}
	if created, err := log.Create(ctx, "a", message("third")); err != nil || !created {
		t.Fatalf("after the purge: %v, %v", created, err)
	}
}

func TestLargeValuesTravelInParts(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	ctx := patient(t)
	log := conn.Log(scope(1), bus.Traces)
	for _, size := range []int{bus.PartBytes, bus.PartBytes + 1, 5*bus.PartBytes + 17} {
		data := noise(size)
		if _, err := log.Create(ctx, "big", bus.Message{Schema: "s/1", Data: data}); err != nil {
			t.Fatal(err)
		}
		got, err := log.Get(ctx, "big")
		if err != nil || !bytes.Equal(got.Data, data) || got.Schema != "s/1" {
			t.Fatalf("%d bytes: got %d, %v", size, len(got.Data), err)
		}
		// A second writer's parts are stored, its manifest is not.
		if created, err := log.Create(ctx, "big", bus.Message{Schema: "s/1", Data: noise(size)}); err != nil || created {
			t.Fatalf("%v, %v", created, err)
		}
		if err := log.Purge(ctx, "big"); err != nil {
			t.Fatal(err)
		}
		depth, err := conn.Depth(ctx, scope(1), bus.Traces)
		if err != nil || depth.Messages != 0 {
			t.Fatalf("%d messages left after the purge, %v", depth.Messages, err)
		}
	}
}

func TestFollowSeesStoredAndNew(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	log := conn.Log(scope(1), bus.Traces)
	ctx, cancel := context.WithCancel(patient(t))
	if _, err := log.Create(ctx, "stored", bus.Message{Schema: "s/1", Data: noise(3 * bus.PartBytes)}); err != nil {
		t.Fatal(err)
	}
	entries := make(chan bus.Entry, 10)
	done := make(chan error, 1)
	go func() {
		done <- log.Follow(ctx, "*", func(e bus.Entry) error { entries <- e; return nil }, nil)
	}()
	if e := <-entries; e.Key != "stored" || len(e.Message.Data) != 3*bus.PartBytes || e.Incarnation != 1 {
		t.Fatalf("got %s with %d bytes", e.Key, len(e.Message.Data))
	}
	if _, err := log.Create(ctx, "new", message("n")); err != nil {
		t.Fatal(err)
	}
	if e := <-entries; e.Key != "new" {
		t.Fatalf("got %s", e.Key)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	broken := errors.New("broken")
	err := log.Follow(patient(t), "*", func(bus.Entry) error { return broken }, nil)
	if !errors.Is(err, broken) {
		t.Fatalf("got %v, want the handler's error", err)
	}
}

func TestFullStreamPushesBack(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{Traces: 3 << 20})
	log := conn.Log(scope(1), bus.Traces)
	data := bus.Message{Schema: "s/1", Data: noise(900 << 10)}
	for _, key := range []string{"a", "b", "c"} {
		if _, err := log.Create(patient(t), key, data); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := log.Create(short, "d", data); !errors.Is(err, bus.ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := log.Create(patient(t), "e", data)
		done <- err
	}()
	if err := log.Purge(patient(t), "a"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("after room was made: %v", err)
	}
}

// TestDamageIsNoticed changes stored messages under the log's feet, as another
// program with a right to write could.
func TestDamageIsNoticed(t *testing.T) {
	noLeaks(t)
	server, conn := start(t, bus.Limits{})
	ctx := patient(t)
	log := conn.Log(scope(1), bus.Traces)
	if _, err := log.Create(ctx, "big", bus.Message{Schema: "s/1", Data: noise(2 * bus.PartBytes)}); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("", nats.InProcessServer(bus.Inner(server)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "uadt.r.1.trace.bare", []byte("no checksum")); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Get(ctx, "bare"); !errors.Is(err, bus.ErrCorrupt) {
		t.Fatalf("got %v, want ErrCorrupt", err)
	}
	stream, err := js.Stream(ctx, "TRACES")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(ctx, 1); err != nil { // the first part
		t.Fatal(err)
	}
	if _, err := log.Get(ctx, "big"); !errors.Is(err, bus.ErrNotFound) || !strings.Contains(err.Error(), "part 0") {
		t.Fatalf("got %v, want ErrNotFound of part 0", err)
	}
	if _, err := log.Create(ctx, "good", message("g")); err != nil {
		t.Fatal(err)
	}
	bad := 0
	end := errors.New("end")
	err = log.Follow(ctx, "*", func(e bus.Entry) error {
		if e.Key != "good" {
			t.Errorf("got %s", e.Key)
		}
		return end
	}, func(error) { bad++ })
	if !errors.Is(err, end) || bad != 2 {
		t.Fatalf("%d bad values, %v", bad, err)
	}
}
