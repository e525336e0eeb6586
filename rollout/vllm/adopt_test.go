package vllm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// TestReloadOrder: pause, load, drop every cache, resume, and only then the
// first request.
func TestReloadOrder(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	adopted, err := fleet.Adopt(bounded(t), offerOf(0))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/v1/models", "/pause?mode=wait&clear_cache=true", "/collective_rpc", "/reset_prefix_cache",
		"/reset_mm_cache", "/reset_encoder_cache", "/resume", "/v1/chat/completions"}
	if !slices.Equal(f.routes, want) || f.path != "/weights/0" {
		t.Errorf("calls %v with weights %q, want %v", f.routes, f.path, want)
	}
	if adopted.Policy != offerOf(0).Policy || adopted.Seconds <= 0 || adopted.Servers[0].Server != f.server.URL {
		t.Errorf("%+v", adopted)
	}
	if _, err := fleet.Adopt(bounded(t), offerOf(0)); err != nil || f.called("/collective_rpc") != 1 {
		t.Errorf("the same offer again: %v, %d loads", err, f.called("/collective_rpc"))
	}
	if _, err := fleet.Adopt(bounded(t), offerOf(-1)); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("an older offer: %v", err)
	}
	for _, bad := range []rollout.Offer{{Policy: offerOf(5).Policy, Transport: rollout.ByNCCL, Path: "x"}, {Policy: offerOf(5).Policy, Transport: rollout.ByDirectory}} {
		if _, err := fleet.Adopt(bounded(t), bad); err == nil {
			t.Errorf("offer %+v was accepted", bad)
		}
	}
}

// TestOldJobsFirst: a server changes only when its jobs of the old policy are
// done, queued ones included; servers that are free of them do not wait for
// one another.
func TestOldJobsFirst(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Concurrency = 1 }, f)
	old := adoptVersion(t, fleet, 0)
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	f.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/v1/chat/completions" && f.called("/collective_rpc") == 1 {
			arrived <- struct{}{}
			<-release
		}
		return false
	})
	errs := make(chan error, 3)
	for _, id := range []string{"running", "queued"} {
		go func() {
			group, err := fleet.Sample(bounded(t), jobOf(id, old))
			if err == nil && group.PolicySent != old {
				err = fmt.Errorf("sampled by %s", group.PolicySent)
			}
			errs <- err
		}()
	}
	<-arrived
	eventually(t, fleet, "one job is queued", func() bool { return fleet.queued[old] == 1 })
	go func() { _, err := fleet.Adopt(bounded(t), offerOf(1)); errs <- err }()
	eventually(t, fleet, "the offer is known", func() bool { return fleet.offer.Policy == offerOf(1).Policy })
	_, err := fleet.Sample(bounded(t), jobOf("late", old))
	wantDrop(t, err, rollout.ReasonStale, "1.1-d1")
	if n := f.called("/collective_rpc"); n != 1 {
		t.Errorf("weights were loaded %d times while old jobs ran", n)
	}
	close(release)
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := f.called("/collective_rpc"); n != 2 {
		t.Errorf("%d loads, want 2", n)
	}
}

// TestFailedReload: the server that fails to load serves no more, even though
// it says that it is well, until it was restarted; the others go on.
func TestFailedReload(t *testing.T) {
	fakes := []*fake{newFake(t), newFake(t), newFake(t)}
	fleet := fleetOn(t, nil, fakes...)
	adoptVersion(t, fleet, 0)
	broken := fakes[1]
	broken.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/collective_rpc" {
			status, body := real(t, "collective_rpc_missing_path")
			refuse(w, status, string(body))
		}
		return r.URL.Path == "/collective_rpc"
	})
	adopted, err := fleet.Adopt(bounded(t), offerOf(1))
	if err != nil || adopted.Servers[0].Err != "" || !strings.Contains(adopted.Servers[1].Err, "must be restarted") {
		t.Fatalf("%+v, %v", adopted, err)
	}
	broken.setHook(nil)
	looks := 0
	eventually(t, fleet, "two more looks", func() bool {
		looks++
		return looks > 6
	})
	for i := range 6 {
		group, err := fleet.Sample(bounded(t), jobOf(fmt.Sprint("j", i), offerOf(1).Policy))
		if err != nil || group.Server == broken.server.URL {
			t.Fatalf("answered by %s: %v", group.Server, err)
		}
	}
	if s := fleet.Servers()[1]; s.State != StateDead || s.Live != (rollout.Policy{}) {
		t.Errorf("%+v, want dead", s)
	}
	broken.mu.Lock()
	broken.start++ // another process
	broken.mu.Unlock()
	broken.setPaused(false)
	eventually(t, fleet, "the restarted server has the current weights", func() bool {
		return fleet.servers[1].serves(offerOf(1).Policy)
	})
	if broken.path != "/weights/1" {
		t.Errorf("weights %q", broken.path)
	}
}

// TestEveryStepOfAReloadMatters: whichever call fails, the server does not
// serve with weights that nobody verified.
func TestEveryStepOfAReloadMatters(t *testing.T) {
	for route, want := range map[string]State{
		"/v1/models": StateStale, "/pause": StateStale, "/collective_rpc": StateDead, "/reset_prefix_cache": StateDead,
		"/reset_mm_cache": StateDead, "/reset_encoder_cache": StateDead, "/resume": StateDead, "/v1/chat/completions": StateDead,
	} {
		for fault, body := range map[string]string{"status": "", "garbage": "[]"} {
			if fault == "garbage" && (strings.HasPrefix(route, "/reset") || route == "/pause" || route == "/resume") {
				continue // their answers say nothing
			}
			t.Run(route+" "+fault, func(t *testing.T) {
				f := newFake(t)
				fleet := fleetOn(t, func(o *Options) { o.Quarantine = time.Hour }, f)
				f.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
					if r.URL.Path != route {
						return false
					}
					if fault == "status" {
						refuse(w, 500, "no")
					} else {
						refuse(w, 200, body)
					}
					return true
				})
				_, err := fleet.Adopt(bounded(t), offerOf(0))
				var quorum *rollout.QuorumError
				if !errors.As(err, &quorum) || quorum.Need != 1 || !strings.Contains(err.Error(), f.server.URL) {
					t.Errorf("error %v, want a quorum error that names the server", err)
				}
				if s := fleet.Servers()[0]; s.State != want || s.Live != (rollout.Policy{}) {
					t.Errorf("%+v, want %s", s, want)
				}
			})
		}
	}
}

// TestCatchesUp: a server that could not be paused gets the weights later.
func TestCatchesUp(t *testing.T) {
	fakes := []*fake{newFake(t), newFake(t), newFake(t)}
	fleet := fleetOn(t, nil, fakes...)
	adoptVersion(t, fleet, 0)
	var refusals atomic.Int64
	fakes[2].setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path != "/pause" || refusals.Add(1) > 2 {
			return false
		}
		refuse(w, 503, "not now")
		return true
	})
	adopted, err := fleet.Adopt(bounded(t), offerOf(1))
	if err != nil || adopted.Servers[2].Err == "" {
		t.Fatalf("%+v, %v", adopted, err)
	}
	eventually(t, fleet, "the third server caught up", func() bool { return fleet.servers[2].serves(offerOf(1).Policy) })
}

// TestAdoptIsBounded: a server that never answers /pause costs its own place in
// the quorum and nothing else.
func TestAdoptIsBounded(t *testing.T) {
	fakes := []*fake{newFake(t), newFake(t), newFake(t)}
	fleet := fleetOn(t, func(o *Options) { o.AdoptTimeout = 2 * time.Second }, fakes...)
	fakes[0].setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/pause" {
			<-r.Context().Done()
		}
		return r.URL.Path == "/pause"
	})
	adopted, err := fleet.Adopt(bounded(t), offerOf(0))
	if err != nil || !strings.Contains(adopted.Servers[0].Err, "was not live after 2s") {
		t.Errorf("%+v, %v", adopted, err)
	}
}

// TestCancelledAdopt returns the context's error.
func TestCancelledAdopt(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	arrived := make(chan struct{})
	f.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/pause" {
			close(arrived)
			<-r.Context().Done()
		}
		return r.URL.Path == "/pause"
	})
	ctx, cancel := context.WithCancel(bounded(t))
	errs := make(chan error, 1)
	go func() { _, err := fleet.Adopt(ctx, offerOf(0)); errs <- err }()
	<-arrived
	second, stop := context.WithCancel(bounded(t))
	stop()
	if _, err := fleet.Adopt(second, offerOf(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a second adoption meanwhile: %v", err)
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

// TestServerThatStartsLate: the first adoption waits for it.
func TestServerThatStartsLate(t *testing.T) {
	address := freePort(t)
	fleet := fleetOn(t, func(o *Options) { o.Servers = []string{"http://" + address} })
	eventually(t, fleet, "the server was missed", func() bool { return fleet.servers[0].state == StateDead })
	errs := make(chan error, 1)
	go func() { _, err := fleet.Adopt(bounded(t), offerOf(0)); errs <- err }()
	eventually(t, fleet, "the offer is known", func() bool { return fleet.offer != nil })
	serveOn(t, address, newFake(t))
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

func TestServerThatNeverStarts(t *testing.T) {
	fleet := fleetOn(t, func(o *Options) {
		o.Servers = []string{"http://" + freePort(t)}
		o.StartTimeout = 50 * time.Millisecond
	})
	_, err := fleet.Adopt(bounded(t), offerOf(0))
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) || !strings.Contains(err.Error(), "is dead") {
		t.Errorf("error %v, want a quorum error about a dead server", err)
	}
}

// TestAsServed: servers that nobody trains are asked with the weights they
// hold; nothing is paused or loaded, and a restarted one is verified anew.
func TestAsServed(t *testing.T) {
	f := newFake(t)
	f.path = "/weights/its-own"
	fleet := fleetOn(t, nil, f)
	offer := rollout.Offer{Policy: offerOf(0).Policy, Transport: rollout.AsServed}
	if _, err := fleet.Adopt(bounded(t), offer); err != nil {
		t.Fatal(err)
	}
	if _, err := fleet.Sample(bounded(t), jobOf("j1", offer.Policy)); err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	f.start++
	f.mu.Unlock()
	eventually(t, fleet, "verified anew", func() bool {
		return f.called("/v1/models") == 2 && fleet.servers[0].serves(offer.Policy)
	})
	if f.called("/pause") != 0 || f.called("/collective_rpc") != 0 || f.path != "/weights/its-own" {
		t.Errorf("calls %v", f.routes)
	}
}

// rebirth gives f another process, which serves weights of its own.
func (f *fake) rebirth() {
	f.setPaused(false)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.start, f.path, f.member = f.start+1, "/weights/of-its-own", nil
}

// TestRestartedWhileAdopting: what was done to a process that is gone says
// nothing of the next one, neither that it has the weights nor that it is broken.
// Behind a proxy nobody sees a closed door meanwhile.
func TestRestartedWhileAdopting(t *testing.T) {
	for name, route := range map[string]string{"while it loads": "/collective_rpc", "before its canary": "/v1/chat/completions"} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			fleet := fleetOn(t, func(o *Options) { o.Quarantine = time.Hour }, f)
			var once sync.Once
			f.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) (answered bool) {
				if r.URL.Path != route {
					return false
				}
				once.Do(func() {
					f.rebirth()
					eventually(t, fleet, "the other process was seen", func() bool { return fleet.servers[0].start == 2 })
					if answered = route == "/collective_rpc"; answered {
						<-r.Context().Done() // nobody answers what the first was asked
					}
				})
				return answered
			})
			adopted, err := fleet.Adopt(bounded(t), offerOf(0))
			var quorum *rollout.QuorumError
			if !errors.As(err, &quorum) || !strings.Contains(adopted.Servers[0].Err, "was restarted while policy 1.0-d0") {
				t.Errorf("%+v, %v", adopted, err)
			}
			eventually(t, fleet, "its monitor brought the weights", func() bool { return fleet.servers[0].serves(offerOf(0).Policy) })
			if f.path != "/weights/0" || f.called("/collective_rpc") != 2 {
				t.Errorf("weights %q after %d loads, want those offered after 2", f.path, f.called("/collective_rpc"))
			}
		})
	}
}
