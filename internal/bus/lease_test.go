package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
)

func TestValues(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	values := conn.Values("r")
	ctx, cancel := context.WithCancel(patient(t))
	if _, err := values.Get(ctx, "policy"); !errors.Is(err, bus.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	first, err := values.Put(ctx, "policy", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan bus.Value, 10)
	done := make(chan error, 1)
	go func() {
		done <- values.Watch(ctx, "policy", func(v bus.Value) error { seen <- v; return nil })
	}()
	if v := <-seen; string(v.Data) != "one" || v.Revision != first {
		t.Fatalf("got %q at %d", v.Data, v.Revision)
	}
	second, err := values.Put(ctx, "policy", []byte("two"))
	if err != nil || second <= first {
		t.Fatalf("revision %d after %d, %v", second, first, err)
	}
	if v := <-seen; string(v.Data) != "two" {
		t.Fatalf("got %q", v.Data)
	}
	if v, err := values.Get(ctx, "policy"); err != nil || v.Revision != second {
		t.Fatalf("got %+v, %v", v, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := values.Put(patient(t), "a b", nil); !errors.Is(err, bus.ErrName) {
		t.Fatalf("got %v, want ErrName", err)
	}
}

// Writers that come in between make an update look again: none is lost.
func TestUpdatesAreNotLost(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	values := conn.Values("r")
	const writers, each = 4, 10
	errs := make(chan error, writers)
	for range writers {
		go func() {
			var err error
			for i := 0; i < each && err == nil; i++ {
				_, err = values.Update(patient(t), "count", func(present []byte) ([]byte, error) { return append(present, '.'), nil })
			}
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	last, err := values.Get(patient(t), "count")
	if err != nil || len(last.Data) != writers*each {
		t.Fatalf("%d updates left a trace (%v), want %d", len(last.Data), err, writers*each)
	}
	refusal := errors.New("not this one")
	if _, err := values.Update(patient(t), "count", func([]byte) ([]byte, error) { return nil, refusal }); !errors.Is(err, refusal) {
		t.Fatalf("got %v, want the refusal", err)
	}
	if again, err := values.Get(patient(t), "count"); err != nil || again.Revision != last.Revision {
		t.Fatalf("revision %d (%v), want it untouched at %d", again.Revision, err, last.Revision)
	}
	if _, err := values.Update(patient(t), "a b", nil); !errors.Is(err, bus.ErrName) {
		t.Fatalf("got %v, want ErrName", err)
	}
}

// What coordinators announce goes up in incarnations only, in whichever order and
// however often they write.
func TestAnnouncementsNeverGoBack(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	values := conn.Values("r")
	value := func(incarnation int) []byte {
		return fmt.Appendf(nil, `{"version":1,"incarnation":%d,"x":"y"}`, incarnation)
	}
	const highest, each = 6, 5
	var wait sync.WaitGroup
	for incarnation := 1; incarnation <= highest; incarnation++ {
		wait.Go(func() {
			for range each {
				_, err := values.Announce(patient(t), "trainer", value(incarnation))
				if err != nil && (incarnation == highest || !errors.Is(err, bus.ErrSuperseded)) {
					t.Errorf("incarnation %d: %v", incarnation, err)
				}
			}
		})
	}
	wait.Wait()
	_, err := values.Announce(patient(t), "trainer", value(highest-1))
	if !errors.Is(err, bus.ErrSuperseded) || !strings.Contains(err.Error(), fmt.Sprintf("incarnation %d of run r, this one is %d", highest, highest-1)) {
		t.Errorf("got %v, want ErrSuperseded with both incarnations", err)
	}
	if last, err := values.Get(patient(t), "trainer"); err != nil || !bytes.Equal(last.Data, value(highest)) {
		t.Errorf("%q is left (%v), want that of incarnation %d", last.Data, err, highest)
	}
	if _, err := values.Announce(patient(t), "trainer", []byte(`{"version":1}`)); err == nil || errors.Is(err, bus.ErrSuperseded) {
		t.Errorf("a value without incarnation: %v", err)
	}
	if _, err := values.Put(patient(t), "foreign", []byte("not json")); err != nil {
		t.Fatal(err)
	}
	if _, err := values.Announce(patient(t), "foreign", value(1)); err != nil {
		t.Errorf("over what is nobody's: %v", err)
	}
}

func TestLeaseExcludes(t *testing.T) {
	noLeaks(t)
	_, conn := start(t, bus.Limits{})
	values := conn.Values("r")
	ctx := patient(t)
	options := bus.LeaseOptions{Key: "lease.coordinator", Holder: "one", TTL: time.Second}
	first, err := values.Acquire(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	options.Holder = "two"
	short, cancel := context.WithTimeout(ctx, 2500*time.Millisecond) // over twice the TTL: it is renewed
	defer cancel()
	if _, err := values.Acquire(short, options); !errors.Is(err, bus.ErrHeld) || !strings.Contains(err.Error(), "by one") {
		t.Fatalf("got %v, want ErrHeld by one", err)
	}
	if err := first.Release(ctx); err != nil {
		t.Fatal(err)
	}
	second, err := values.Acquire(ctx, options)
	if err != nil || second.Incarnation() <= first.Incarnation() {
		t.Fatalf("incarnation %d after %d, %v", second.Incarnation(), first.Incarnation(), err)
	}
	options.Holder, options.TakeOver, options.Above = "three", true, 1_000_000
	third, err := values.Acquire(ctx, options)
	if err != nil || third.Incarnation() != 1_000_001 {
		t.Fatalf("incarnation %d, %v", third.Incarnation(), err)
	}
	<-second.Lost()
	if err := second.Release(ctx); err != nil {
		t.Fatalf("releasing what was lost: %v", err)
	}
	select {
	case <-third.Lost():
		t.Fatal("the release of the lost lease ended its successor")
	default:
	}
	if err := third.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if err := third.Release(ctx); err != nil {
		t.Fatalf("second release: %v", err)
	}
}

func TestLeaseOfTheDeadExpires(t *testing.T) {
	noLeaks(t)
	server, conn := start(t, bus.Limits{})
	dead := connectTo(t, server, "")
	options := bus.LeaseOptions{Key: "lease.server.s1", Holder: "dead", TTL: time.Second}
	lease, err := dead.Values("r").Acquire(patient(t), options)
	if err != nil {
		t.Fatal(err)
	}
	dead.Close() // as a killed process: nothing is renewed, nothing released
	options.Holder = "heir"
	heir, err := conn.Values("r").Acquire(patient(t), options)
	if err != nil {
		t.Fatal(err)
	}
	<-lease.Lost()
	if err := lease.Release(patient(t)); err != nil {
		t.Fatal(err)
	}
	if err := heir.Release(patient(t)); err != nil {
		t.Fatal(err)
	}
}
