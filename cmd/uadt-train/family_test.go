package main

import (
	"errors"
	"path/filepath"
	"strings"
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
	unknown := family{kind: "llava", pads: []int32{7}}
	if err := unknown.check(c); !errors.As(err, &usage) || !strings.Contains(err.Error(), "llava") || !strings.Contains(err.Error(), internFamily) {
		t.Errorf("a family that nobody trains: %v", err)
	}
}

// A vision-language model of another family is refused before a run is made, by
// the run and by the doctor.
func TestOtherArchitecturesAreRefused(t *testing.T) {
	l := lab(t)
	dir := copyModel(t, l)
	edit(t, filepath.Join(dir, "config.json"), func(all map[string]any) { all["model_type"] = "llava" })
	recipe, runs := writeRecipe(t, func(runs string) string { return strings.Replace(l.rlOnly(runs), l.path("model"), dir, 1) })
	for _, backend := range []string{"gorgonia", "pytorch"} {
		set := []string{"--config", recipe, "--set", "trainer.backend=" + backend, "--set", "trainer.launch=external", "--set", "bus.listen=127.0.0.1:4999"}
		invoke(t, set...).expect(t, exitUsage, dir+" is a llava", nativeFamily, internFamily)
		r := invoke(t, append([]string{"doctor"}, set...)...)
		r.expect(t, exitFailed, "model will not do")
		if !contains(r.stdout, "llava", nativeFamily+" or "+internFamily) {
			t.Errorf("the doctor says\n%s", r.stdout)
		}
	}
	requireAbsent(t, runs)
}
