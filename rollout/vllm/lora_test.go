package vllm

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// newLoRAFake is a server that was started with --enable-lora.
func newLoRAFake(t *testing.T) *fake {
	f := newFake(t)
	f.adapters = []string{}
	return f
}

func adapterOf(version int) rollout.Offer {
	o := offerOf(version)
	o.Transport, o.Path, o.Base = rollout.ByLoRA, fmt.Sprintf("/adapters/%d", version), "x"
	return o
}

// TestAdapters: each policy is a name of its own, which requests ask for; the
// last two stay, nothing is paused and the base is not touched.
func TestAdapters(t *testing.T) {
	f := newLoRAFake(t)
	fleet := fleetOn(t, nil, f)
	var groups []rollout.Group
	for version := range 4 {
		offer := adapterOf(version)
		if _, err := fleet.Adopt(bounded(t), offer); err != nil {
			t.Fatal(err)
		}
		group, err := fleet.Sample(bounded(t), jobOf("j", offer.Policy))
		if err != nil {
			t.Fatal(err)
		}
		if last := f.requests[len(f.requests)-1]; last["model"] != adapterName(offer.Policy) {
			t.Errorf("version %d was asked of model %v", version, last["model"])
		}
		groups = append(groups, group)
	}
	for i, g := range groups[1:] {
		if slices.Equal(g.Traces[0].Tokens, groups[0].Traces[0].Tokens) {
			t.Errorf("version %d answers as version 0 does", i+1)
		}
	}
	if want := []string{adapterName(adapterOf(2).Policy), adapterName(adapterOf(3).Policy)}; !slices.Equal(f.names(), want) {
		t.Errorf("served %q, want %q", f.names(), want)
	}
	want := []string{"/v1/models", "/v1/models", "/v1/load_lora_adapter", "/v1/models", "/v1/chat/completions", "/v1/chat/completions"}
	if !slices.Equal(f.routes[:len(want)], want) || f.path != "" || f.called("/pause") > 0 {
		t.Errorf("calls %q on weights %q, want %q", f.routes, f.path, want)
	}
	if _, err := fleet.Adopt(bounded(t), adapterOf(3)); err != nil || f.called("/v1/load") != 4 {
		t.Errorf("the same offer again: %v, %d loads", err, f.called("/v1/load"))
	}
	none := adapterOf(4)
	none.Path = ""
	if _, err := fleet.Adopt(bounded(t), none); err == nil {
		t.Error("an offer without a path was accepted")
	}
}

// TestAdapterIsThereAlready: a coordinator that comes back finds the adapter of
// its resume point on the server.
func TestAdapterIsThereAlready(t *testing.T) {
	f := newLoRAFake(t)
	offer := adapterOf(7)
	f.adapters = []string{adapterName(offer.Policy) + "=/adapters/7"}
	if _, err := fleetOn(t, nil, f).Adopt(bounded(t), offer); err != nil || f.called("/v1/load") > 0 {
		t.Errorf("%v, %d loads", err, f.called("/v1/load"))
	}
}

// TestAdapterRefused: a server that cannot load says what it must be started
// with; it is not broken, and catches up when it can.
func TestAdapterRefused(t *testing.T) {
	without, missing, silent := newFake(t), newLoRAFake(t), newLoRAFake(t)
	silent.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		return r.URL.Path == "/v1/load_lora_adapter"
	})
	for says, f := range map[string]*fake{"status 404: \"Not Found\"": without, "No adapter found for /adapters/missing": missing, "is not served": silent} {
		offer := adapterOf(0)
		if f == missing {
			offer.Path = "/adapters/missing"
		}
		fleet := fleetOn(t, func(o *Options) { o.Quarantine = time.Hour }, f)
		_, err := fleet.Adopt(bounded(t), offer)
		var quorum *rollout.QuorumError
		if !errors.As(err, &quorum) || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want a quorum error that says %q", err, says)
		}
		if f != silent && (err == nil || !strings.Contains(err.Error(), "--enable-lora") || !strings.Contains(err.Error(), "--model x")) {
			t.Errorf("error %v does not say what to start", err)
		}
		if s := fleet.Servers()[0]; s.State != StateStale || s.Live != (rollout.Policy{}) {
			t.Errorf("%+v, want stale", s)
		}
	}
	one, two := newLoRAFake(t), newLoRAFake(t)
	two.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/v1/load_lora_adapter" {
			refuse(w, 500, `{"error":{"message":"busy"}}`)
		}
		return r.URL.Path == "/v1/load_lora_adapter"
	})
	fleet := fleetOn(t, func(o *Options) { o.Quorum = 1 }, one, two)
	adopted, err := fleet.Adopt(bounded(t), adapterOf(1))
	if err != nil || adopted.Servers[0].Err != "" || !strings.Contains(adopted.Servers[1].Err, "busy") {
		t.Fatalf("%+v, %v", adopted, err)
	}
	two.setHook(nil)
	eventually(t, fleet, "the second server catches up", func() bool { return fleet.servers[1].serves(adapterOf(1).Policy) })
}

// TestAdapterCanary: an adapter that loads and does not compute is not live.
func TestAdapterCanary(t *testing.T) {
	f := newLoRAFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Quarantine = time.Hour }, f)
	f.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/v1/chat/completions" {
			refuse(w, 500, `{"error":{"message":"engine"}}`)
		}
		return r.URL.Path == "/v1/chat/completions"
	})
	if _, err := fleet.Adopt(bounded(t), adapterOf(0)); err == nil || !strings.Contains(err.Error(), "canary") {
		t.Errorf("error %v", err)
	}
	if s := fleet.Servers()[0]; s.State != StateStale {
		t.Errorf("%+v, want stale", s)
	}
}

// TestRestartedServerGetsItsAdapter: a new process has the base alone.
func TestRestartedServerGetsItsAdapter(t *testing.T) {
	f := newLoRAFake(t)
	fleet := fleetOn(t, nil, f)
	for version := range 3 {
		if _, err := fleet.Adopt(bounded(t), adapterOf(version)); err != nil {
			t.Fatal(err)
		}
	}
	f.mu.Lock()
	f.start++
	f.adapters = []string{}
	f.mu.Unlock()
	name := adapterName(adapterOf(2).Policy)
	eventually(t, fleet, "the adapter is there again", func() bool {
		return slices.Contains(f.names(), name) && fleet.servers[0].serves(adapterOf(2).Policy)
	})
	if _, err := fleet.Sample(bounded(t), jobOf("again", adapterOf(2).Policy)); err != nil {
		t.Error(err)
	}
	for version := 3; version < 5; version++ {
		if _, err := fleet.Adopt(bounded(t), adapterOf(version)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{adapterName(adapterOf(3).Policy), adapterName(adapterOf(4).Policy)}
	if unloads := f.called("/v1/unload"); !slices.Equal(f.names(), want) || unloads != 2 {
		t.Errorf("served %q after %d unloads, want %q after 2: none of what went with the old process", f.names(), unloads, want)
	}
}

// TestAdapterOnAnotherBase is told once, since paths may differ between hosts,
// and an adapter that is not unloaded is no failure.
func TestAdapterOnAnotherBase(t *testing.T) {
	f := newLoRAFake(t)
	f.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path == "/v1/unload_lora_adapter" {
			refuse(w, 500, "no")
		}
		return r.URL.Path == "/v1/unload_lora_adapter"
	})
	var log bytes.Buffer
	fleet := fleetOn(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) }, f)
	for version := range 4 {
		offer := adapterOf(version)
		offer.Base = "/models/other"
		if _, err := fleet.Adopt(bounded(t), offer); err != nil {
			t.Fatal(err)
		}
	}
	if err := fleet.Close(); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	if strings.Count(text, "trainer's=/models/other") != 1 || strings.Count(text, "was not unloaded") != 2 {
		t.Errorf("log:\n%s", text)
	}
}

// TestUnloadingIsBounded: a server that does not answer the unloading of an old
// adapter serves the new one.
func TestUnloadingIsBounded(t *testing.T) {
	f := newLoRAFake(t)
	f.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path != "/v1/unload_lora_adapter" {
			return false
		}
		<-r.Context().Done()
		return true
	})
	fleet := fleetOn(t, func(o *Options) { o.ProbeTimeout, o.DeadAfter = 200*time.Millisecond, 1000 }, f)
	for version := range 3 {
		if _, err := fleet.Adopt(bounded(t), adapterOf(version)); err != nil {
			t.Fatal(err)
		}
	}
	if s := fleet.Servers()[0]; s.Live != adapterOf(2).Policy || f.called("/v1/unload") != 1 {
		t.Errorf("%+v after %d unloads, want the last adapter live after 1", s, f.called("/v1/unload"))
	}
}
