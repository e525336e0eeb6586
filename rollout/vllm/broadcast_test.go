package vllm

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

// TestConformanceByBroadcast runs the suite of rollout.Fleet with weights that
// come by broadcast.
func TestConformanceByBroadcast(t *testing.T) {
	rollouttest.Run(t, func(t *testing.T) rollouttest.Setup {
		trainer := newFakeTrainer(t)
		return rollouttest.Setup{
			Fleet: fleetOn(t, nil, newFake(t), newFake(t)),
			Offer: func(_ *testing.T, version int) rollout.Offer { return trainer.offer(version) },
		}
	})
}

// TestBroadcastOrder: one group is made, before anything is paused; each update
// is pause, start, receive while the trainer sends, finish, drop every cache,
// resume, and only then the first request.
func TestBroadcastOrder(t *testing.T) {
	f, trainer := newFake(t), newFakeTrainer(t)
	fleet := fleetOn(t, nil, f)
	update := []string{"/pause?mode=wait&clear_cache=true", "/start_weight_update", "/update_weights", "/finish_weight_update",
		"/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/resume", "/v1/chat/completions"}
	want := append([]string{"/v1/models", "/get_world_size", "/init_weight_transfer_engine"}, update...)
	asked := []string{"/join", "/prepare", "/send"}
	for version := range 2 {
		adopted, err := fleet.Adopt(bounded(t), trainer.offer(version))
		if err != nil || adopted.Seconds <= 0 || f.path != offerOf(version).Path {
			t.Fatalf("version %d: %+v, weights %q: %v", version, adopted, f.path, err)
		}
		if !slices.Equal(f.routes, want) || !slices.Equal(trainer.routes, asked) {
			t.Errorf("version %d: the server was asked for %v, want %v; the trainer for %v, want %v", version, f.routes, want, trainer.routes, asked)
		}
		want, asked = slices.Concat(want, []string{"/v1/models"}, update), append(asked, "/prepare", "/send")
	}
	if got := trainer.joins[0]; got["server"] != f.server.URL || got["world_size"] != 2.0 || got["seconds"] != 120.0 {
		t.Errorf("joined with %v", got)
	}
}

// TestRefusedOffers: an offer without an address reaches no server.
func TestRefusedOffers(t *testing.T) {
	f, trainer := newFake(t), newFakeTrainer(t)
	fleet := fleetOn(t, nil, f)
	for _, change := range []func(*rollout.Offer){
		func(o *rollout.Offer) { o.NCCL = nil },
		func(o *rollout.Offer) { o.NCCL = &rollout.NCCLOffer{Token: fakeToken} },
		func(o *rollout.Offer) { o.NCCL = &rollout.NCCLOffer{URL: "http://127.0.0.1:1"} },
		func(o *rollout.Offer) { o.Transport = "pigeon" },
	} {
		offer := trainer.offer(0)
		change(&offer)
		if _, err := fleet.Adopt(bounded(t), offer); err == nil || len(f.routes)+len(trainer.routes) > 0 {
			t.Errorf("%+v: %v; calls %v, %v", offer, err, f.routes, trainer.routes)
		}
	}
}

// cutOff ends the connection of a request without an answer.
func cutOff(t *testing.T, w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	conn.Close()
}

// TestServerDiesInABroadcast: the trainer is told, the other server goes on, and
// the dead one, restarted, gets the weights in a new group from its monitor.
func TestServerDiesInABroadcast(t *testing.T) {
	dying, other, trainer := newFake(t), newFake(t), newFakeTrainer(t)
	fleet := fleetOn(t, func(o *Options) { o.Quorum = 1 }, dying, other)
	if _, err := fleet.Adopt(bounded(t), trainer.offer(0)); err != nil {
		t.Fatal(err)
	}
	dying.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path != "/update_weights" {
			return false
		}
		cutOff(t, w)
		return true
	})
	adopted, err := fleet.Adopt(bounded(t), trainer.offer(1))
	if err != nil || adopted.Servers[1].Err != "" {
		t.Fatalf("%+v, %v", adopted, err)
	}
	for _, want := range []string{"/update_weights", "must be restarted"} {
		if !strings.Contains(adopted.Servers[0].Err, want) {
			t.Errorf("error %q does not say %q", adopted.Servers[0].Err, want)
		}
	}
	if s := fleet.Servers()[0]; s.State != StateDead || trainer.called("/leave") != 1 {
		t.Errorf("%+v after %d groups were left, want dead after 1", s, trainer.called("/leave"))
	}
	dying.setHook(nil)
	dying.setPaused(false)
	dying.mu.Lock()
	dying.start, dying.member = 2, nil // another process, in no group
	dying.mu.Unlock()
	eventually(t, fleet, "the restarted server has the current weights", func() bool {
		return fleet.servers[0].serves(offerOf(1).Policy)
	})
	if dying.path != "/weights/1" || trainer.called("/join") != 3 {
		t.Errorf("weights %q after %d joins, want /weights/1 after 3", dying.path, trainer.called("/join"))
	}
}

// TestTrainerFailsInABroadcast: the server would wait for the rest for ever; it
// is cut off and counts as broken.
func TestTrainerFailsInABroadcast(t *testing.T) {
	f, trainer := newFake(t), newFakeTrainer(t)
	fleet := fleetOn(t, nil, f)
	trainer.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/send" {
			failWith(w, 500, "BroadcastError", "connection closed by peer")
		}
		return r.URL.Path == "/send"
	})
	adopted, err := fleet.Adopt(bounded(t), trainer.offer(0))
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) {
		t.Fatalf("%v, want a QuorumError", err)
	}
	for _, want := range []string{trainer.server.URL, "BroadcastError", "connection closed by peer", "must be restarted"} {
		if !strings.Contains(adopted.Servers[0].Err, want) {
			t.Errorf("error %q does not say %q", adopted.Servers[0].Err, want)
		}
	}
	if s := fleet.Servers()[0]; s.State != StateDead {
		t.Errorf("%+v, want dead", s)
	}
}

// TestTrainerGone: nothing happens to a server while nobody can send; a trainer
// that comes back elsewhere makes a new group, and so does one at the same
// address that has forgotten the old one.
func TestTrainerGone(t *testing.T) {
	f, first, second := newFake(t), newFakeTrainer(t), newFakeTrainer(t)
	fleet := fleetOn(t, nil, f)
	if _, err := fleet.Adopt(bounded(t), first.offer(0)); err != nil {
		t.Fatal(err)
	}
	first.server.Close()
	adopted, err := fleet.Adopt(bounded(t), first.offer(1))
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) || !strings.Contains(adopted.Servers[0].Err, "trainer "+first.server.URL) {
		t.Fatalf("%+v, %v", adopted, err)
	}
	if s := fleet.Servers()[0]; s.State == StateDead || f.called("/pause") != 1 || f.path != "/weights/0" {
		t.Errorf("%+v after %d pauses with weights %q", s, f.called("/pause"), f.path)
	}
	if _, err := fleet.Adopt(bounded(t), second.offer(2)); err != nil || second.called("/join") != 1 || f.path != "/weights/2" {
		t.Errorf("another trainer: %v after %d joins, weights %q", err, second.called("/join"), f.path)
	}
	second.forget(true, false)
	if _, err := fleet.Adopt(bounded(t), second.offer(3)); err != nil || second.called("/join") != 2 || f.path != "/weights/3" {
		t.Errorf("a trainer that forgot: %v after %d joins, weights %q", err, second.called("/join"), f.path)
	}
}

// TestPolicyNoLongerHeld: a late server is refused by name before its weights
// are touched, whether it is in a group or not, and gets the next policy.
func TestPolicyNoLongerHeld(t *testing.T) {
	f, trainer := newFake(t), newFakeTrainer(t)
	fleet := fleetOn(t, nil, f)
	for round := range 2 {
		gone := trainer.offer(2 * round)
		trainer.forget(false, true)
		adopted, err := fleet.Adopt(bounded(t), gone)
		var quorum *rollout.QuorumError
		if !errors.As(err, &quorum) || !strings.Contains(adopted.Servers[0].Err, "PolicyGoneError: policy "+gone.Policy.String()) {
			t.Fatalf("%+v, %v", adopted, err)
		}
		if f.called("/pause") != round {
			t.Errorf("%d pauses, want %d", f.called("/pause"), round)
		}
		if _, err := fleet.Adopt(bounded(t), trainer.offer(2*round+1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnfitServers: a server that says nothing useful of its workers, or takes no
// part in broadcasts, is named, and the trainer holds no group for it.
func TestUnfitServers(t *testing.T) {
	for route, answer := range map[string]struct {
		status int
		body   string
		says   string
		leaves int
	}{
		"/get_world_size":              {200, `{"world_size":0}`, "world_size", 0},
		"/get_world_size ":             {404, `{"detail":"Not Found"}`, "/get_world_size: status 404", 0},
		"/init_weight_transfer_engine": {500, "Internal Server Error", "--weight-transfer-config", 1},
	} {
		t.Run(fmt.Sprint(route, answer.status), func(t *testing.T) {
			f, trainer := newFake(t), newFakeTrainer(t)
			fleet := fleetOn(t, nil, f)
			f.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if r.URL.Path != strings.TrimSpace(route) {
					return false
				}
				refuse(w, answer.status, answer.body)
				return true
			})
			adopted, err := fleet.Adopt(bounded(t), trainer.offer(0))
			var quorum *rollout.QuorumError
			if !errors.As(err, &quorum) || !strings.Contains(adopted.Servers[0].Err, answer.says) {
				t.Fatalf("%+v, %v", adopted, err)
			}
			if s := fleet.Servers()[0]; s.State == StateDead || f.called("/pause") > 0 || trainer.called("/leave") < answer.leaves {
				t.Errorf("%+v after %d pauses, %d groups left", s, f.called("/pause"), trainer.called("/leave"))
			}
			f.setHook(nil)
			eventually(t, fleet, "the mended server has the weights", func() bool { return fleet.servers[0].serves(offerOf(0).Policy) })
		})
	}
}

// TestBroadcastsAreBounded: a half that never answers ends at the limit, with an
// error that says what was waited for.
func TestBroadcastsAreBounded(t *testing.T) {
	for route, says := range map[string]string{
		"/init_weight_transfer_engine": "joining the group of server",
		"/update_weights":              "broadcast of policy 1.0-d0 to server",
	} {
		t.Run(route[1:], func(t *testing.T) {
			f, trainer := newFake(t), newFakeTrainer(t)
			fleet := fleetOn(t, func(o *Options) { o.TransferTimeout = 50 * time.Millisecond }, f)
			f.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
				if r.URL.Path != route {
					return false
				}
				<-r.Context().Done()
				return true
			})
			adopted, err := fleet.Adopt(bounded(t), trainer.offer(0))
			var quorum *rollout.QuorumError
			if !errors.As(err, &quorum) || !strings.Contains(adopted.Servers[0].Err, says) || !strings.Contains(adopted.Servers[0].Err, "longer than 50ms") {
				t.Fatalf("%+v, %v", adopted, err)
			}
			if trainer.called("/leave") == 0 {
				t.Error("the trainer was not told")
			}
			if s := fleet.Servers()[0]; (s.State == StateDead) != (route == "/update_weights") {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestNothingIsHeldForAFailedUpdate: what the trainer has at hand for a server
// that does not come to fetch it is a whole copy of the weights. The group ends,
// and another is made when the server can.
func TestNothingIsHeldForAFailedUpdate(t *testing.T) {
	answer := func(w http.ResponseWriter) bool { refuse(w, 500, "no"); return true }
	for name, fail := range map[string]func(*fake, *fakeTrainer){
		"the server does not pause": func(f *fake, _ *fakeTrainer) {
			f.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				return r.URL.Path == "/pause" && answer(w)
			})
		},
		"the trainer's answer is lost": func(_ *fake, trainer *fakeTrainer) {
			trainer.setHook(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/prepare" {
					cutOff(t, w)
				}
				return r.URL.Path == "/prepare"
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, trainer := newFake(t), newFakeTrainer(t)
			fleet := fleetOn(t, func(o *Options) { o.Quarantine = time.Hour }, f)
			if _, err := fleet.Adopt(bounded(t), trainer.offer(0)); err != nil {
				t.Fatal(err)
			}
			fail(f, trainer)
			var quorum *rollout.QuorumError
			if _, err := fleet.Adopt(bounded(t), trainer.offer(1)); !errors.As(err, &quorum) || trainer.called("/leave") != 1 {
				t.Errorf("%v, %d groups left, want 1", err, trainer.called("/leave"))
			}
			f.setHook(nil)
			trainer.setHook(nil)
			if _, err := fleet.Adopt(bounded(t), trainer.offer(2)); err != nil || trainer.called("/join") != 2 || f.path != "/weights/2" {
				t.Errorf("%v after %d joins, weights %q", err, trainer.called("/join"), f.path)
			}
		})
	}
}
