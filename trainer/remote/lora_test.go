package remote

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// TestAdaptersOnTheWire: ranks are told what adapters to train and to publish,
// and the offer names the weights that they are added to, after a resume too.
func TestAdaptersOnTheWire(t *testing.T) {
	k := newBus(t, "adapters")
	model, err := filepath.Abs("m")
	must(t, err)
	answer := published{Digest: strings.Repeat("ab", 32), Path: "/policies/7.4"}
	var begun []beginBody
	var asked []publishBody
	made, _ := set(t, k, Options{Weights: rollout.ByLoRA, LoRA: &LoRA{Rank: 8}}, func(_ int, r request) reply {
		switch r.name {
		case "begin":
			var body beginBody
			must(t, bus.DecodeStrict(r.body, &body))
			begun = append(begun, body)
		case "publish":
			var body publishBody
			must(t, bus.DecodeStrict(r.body, &body))
			asked = append(asked, body)
			return reply{body: answer}
		}
		return reply{}
	})
	stage := trainer.Stage{Incarnation: 7, Model: "m", Seed: 11}
	resumed := stage
	resumed.Resume, resumed.Step = t.TempDir(), 3
	for i, s := range []trainer.Stage{stage, resumed} {
		must(t, made.Begin(t.Context(), s))
		want := loraMessage{Rank: 8, Alpha: 16, Seed: 11, Targets: []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}}
		if m := begun[i].Stage; !reflect.DeepEqual(m.LoRA, want) || m.Model != model || m.Resume != s.Resume {
			t.Errorf("began %+v, want %+v on %s", m, want, model)
		}
		offer, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7, Version: 4})
		must(t, err)
		if offer.Transport != rollout.ByLoRA || offer.Path != answer.Path || offer.Base != model || offer.Policy.Digest != answer.Digest {
			t.Errorf("%+v", offer)
		}
	}
	if asked[0] != (publishBody{Incarnation: 7, PolicyVersion: 4, Transport: "lora"}) {
		t.Errorf("asked for %+v", asked)
	}
	answer.Path = ""
	if _, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7, Version: 5}); !errors.Is(err, ErrFrame) {
		t.Errorf("no path: %v, want ErrFrame", err)
	}
	resumed.Model = ""
	if err := made.Begin(t.Context(), resumed); err == nil || !strings.Contains(err.Error(), "started from") {
		t.Errorf("a resume that does not name its base: %v", err)
	}
}

func TestLoRAOptions(t *testing.T) {
	given := LoRA{Rank: 4, Alpha: 3, Targets: []string{"q_proj"}}
	if got, err := given.prepare(); err != nil || !reflect.DeepEqual(got, given) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []LoRA{{}, {Rank: -1}, {Rank: 4, Alpha: -1}} {
		if _, err := (Options{LoRA: &bad}).prepare(); err == nil || !strings.Contains(err.Error(), "LoRA has rank") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := (Options{Weights: rollout.ByLoRA}).prepare(); err == nil || !strings.Contains(err.Error(), "LoRA is missing") {
		t.Errorf("weights by LoRA without LoRA: %v", err)
	}
	if m := (*LoRA)(nil).message(3); m.Rank != 0 || m.Targets == nil {
		t.Errorf("none is %+v", m)
	}
}
