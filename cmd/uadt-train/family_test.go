package main

import (
	"errors"
	"testing"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/trainer"
)

func TestFamilyOfTheSharedModel(t *testing.T) {
	f, err := readFamily(lab(t).path("model"))
	if err != nil {
		t.Fatal(err)
	}
	if f.kind != nativeFamily || len(f.pads) != 2 || f.pads[0] == f.pads[1] {
		t.Errorf("family = %+v, want %s with two pads", f, nativeFamily)
	}
}

func TestOtherFamiliesNeedPyTorchAndServers(t *testing.T) {
	c := configs.Defaults()
	c.Stages = []configs.Stage{{Kind: trainer.RL}}
	other := family{kind: "internvl", pads: []int32{7}}
	var usage *usageError
	if err := other.check(c); !errors.As(err, &usage) {
		t.Errorf("gorgonia with internvl: error is %v, want a usage error", err)
	}
	c.Trainer.Backend = backendPyTorch
	if err := other.check(c); !errors.As(err, &usage) {
		t.Errorf("the native engine with internvl: error is %v, want a usage error", err)
	}
	c.Rollout.Servers = []string{"http://127.0.0.1:8000"}
	if err := other.check(c); err != nil {
		t.Errorf("PyTorch and a server: %v", err)
	}
	if err := (family{kind: nativeFamily}).check(configs.Defaults()); err != nil {
		t.Errorf("the native family: %v", err)
	}
}
