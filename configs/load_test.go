package configs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/uadt"
)

// minimal is the least valid file.
const minimal = `
name: test
model:
  path: models/base
stages:
  - name: think
    kind: rl
    data: train.json
    steps: 60
    learning_rate: 1e-4
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, text string, set ...string) Loaded {
	t.Helper()
	loaded, err := Load(Request{File: write(t, text), Set: set})
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	return loaded
}

func TestMinimalFileTakesDefaults(t *testing.T) {
	c := load(t, minimal)
	if c.Rollout.GroupSize != 8 || c.UADT.Rule != "c1" || c.Rollout.Timeout != 10*time.Minute {
		t.Errorf("defaults are not those documented: %+v", c.Config)
	}
	if len(c.Stages) != 1 || c.Stages[0].Steps != 60 || c.Stages[0].Decay != "constant" {
		t.Errorf("stage = %+v", c.Stages)
	}
}

// Adapters as VLM-R1 has them, handed out alone.
func TestLoRA(t *testing.T) {
	c := load(t, minimal+"rollout: {servers: [\"http://a\"]}\ntrainer: {backend: pytorch, lora_rank: 64, lora_alpha: 128, lora_targets: [q_proj, v_proj], weights: lora}\n").Trainer
	if c.LoRARank != 64 || c.LoRAAlpha != 128 || len(c.LoRATargets) != 2 || c.Weights != "lora" {
		t.Errorf("%+v", c)
	}
	if c := load(t, minimal).Trainer; c.LoRARank != 0 || len(c.LoRATargets) != 7 || c.Weights != "directory" {
		t.Errorf("defaults are %+v", c)
	}
}

func TestPrecedenceAndOrigins(t *testing.T) {
	path := write(t, minimal+"rollout:\n  group_size: 4\n  max_tokens: 64\n  temperature: 0.9\n")
	c, err := Load(Request{
		File: path,
		Env:  []string{"UADT_ROLLOUT_MAX_TOKENS=96", "UADT_ROLLOUT_TEMPERATURE=0.8", "PATH=/bin", "UADT_CACHE=/x"},
		Set:  []string{"rollout.temperature=0.7", "stages.think.steps=5"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Rollout.GroupSize != 4 || c.Rollout.MaxTokens != 96 || c.Rollout.Temperature != 0.7 || c.Stages[0].Steps != 5 {
		t.Errorf("rollout = %+v, stages = %+v", c.Rollout, c.Stages)
	}
	for key, want := range map[string]string{
		"rollout.group_size": path + ":12", "rollout.max_tokens": "env UADT_ROLLOUT_MAX_TOKENS",
		"rollout.temperature": "--set", "rollout.top_p": "default", "stages.0.steps": "--set", "stages.0.kind": path + ":7",
	} {
		if c.Origins[key] != want {
			t.Errorf("origin of %s is %q, want %q", key, c.Origins[key], want)
		}
	}
}

func TestSchedulesAndHalfLives(t *testing.T) {
	c := load(t, minimal+"uadt:\n  lambda: {shape: cosine, from: 0.5, to: 0, over: 50%}\n  gamma: {half_life: 6}\n  placebo: off\n", "uadt.gain=2")
	if c.UADT.Lambda.Shape != uadt.ShapeCosine || c.UADT.Lambda.Over.Share != 0.5 {
		t.Errorf("lambda = %+v", c.UADT.Lambda)
	}
	if c.UADT.Gamma.HalfLife.Steps != 6 || c.UADT.Gain.From != 2 || c.UADT.Placebo != uadt.PlaceboOff {
		t.Errorf("uadt = %+v", c.UADT)
	}
}

// Every bad value is named with its place, and all are reported at once.
func TestBadValues(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", "rollout:\n  group_sise: 4\n", ":12: unknown key rollout.group_sise, did you mean rollout.group_size?"},
		{"unknown section", "rolout:\n  group_size: 4\n", ":11: unknown key rolout"},
		{"wrong type", "rollout:\n  group_size: many\n", `:12: rollout.group_size: "many" is not a whole number`},
		{"fraction", "rollout:\n  group_size: 4.5\n", "4.5 is not a whole number"},
		{"group of one", "rollout:\n  group_size: 1\n", "rollout.group_size: 1 is outside [2, 1024]"},
		{"negative lambda", "uadt:\n  lambda: -0.1\n", "uadt.lambda"},
		{"top_p 0", "rollout:\n  top_p: 0\n", "rollout.top_p: 0 is outside (0, 1]"},
		{"filtered", "rollout:\n  top_p: 0.9\n", "rollout.allow_filtered"},
		{"clip_low", "grpo:\n  clip_low: 1.5\n", "grpo.clip_low: 1.5 is outside [0, 1]"},
		{"broadcasts of gorgonia", "trainer:\n  weights: nccl\n", "only pytorch does"},
		{"broadcasts to the native server", "trainer:\n  backend: pytorch\n  weights: nccl\n", "rollout.servers: is empty, but trainer.weights is nccl"},
		{"weights by pigeon", "trainer:\n  weights: pigeon\n", "is none of directory, nccl, lora"},
		{"adapters of gorgonia", "trainer:\n  lora_rank: 8\n", "trainer.lora_rank: 8, but gorgonia trains no adapters, only pytorch does"},
		{"adapter of nothing", "trainer:\n  backend: pytorch\n  lora_rank: 8\n  lora_targets: []\n", "trainer.lora_targets: is empty"},
		{"adapter of the head", "trainer:\n  backend: pytorch\n  lora_rank: 8\n  lora_targets: [lm_head]\n", `trainer.lora_targets: "lm_head" is none of q_proj`},
		{"adapters published, none trained", "trainer:\n  weights: lora\n", "trainer.lora_rank is 0: there is no adapter"},
		{"adapters to the native server", "trainer:\n  backend: pytorch\n  lora_rank: 8\n  weights: lora\n", "rollout.servers: is empty, but trainer.weights is lora"},
		{"adapters after another stage", "  - {name: again, kind: rl, data: x, steps: 1, learning_rate: 1e-4}\nrollout: {servers: [\"http://a\"]}\ntrainer: {backend: pytorch, lora_rank: 8, weights: lora}\n", "the stages are not one of kind rl"},
		{"adapters of a frozen part", "    frozen: [language]\ntrainer: {backend: pytorch, lora_rank: 8}\n", "stages.0.frozen: has language, which is what trainer.lora_rank trains"},
		{"no bad step at all", "trainer:\n  max_bad_steps: 0\n", "trainer.max_bad_steps: 0 is less than 1"},
		{"k1 in loss", "grpo:\n  kl: k1\n  kl_coef: 0.1\n", "k1 is refused in the loss"},
		{"informative with KL", "grpo:\n  kl: k3\n  kl_coef: 0.1\n  denominator: informative\n", "grpo.denominator: informative is refused"},
		{"gspo", "grpo:\n  loss: gspo\n", "want seq_mean_token_mean"},
		{"section as value", "rollout: 4\n", "rollout is a section"},
		{"twice", "name: again\n", "name is set twice, first at line 2"},
		{"not yaml", "rollout: [", "did not find"},
		{"nan", "rollout:\n  temperature: .nan\n", "is not a number"},
		{"unknown norm", "uadt:\n  norm: log\n", "uadt.norm"},
		{"judge without url", "reward:\n  open: judge\n", "reward.judge_url"},
		{"duration", "rollout:\n  timeout: 10\n", "is not a duration"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(Request{File: write(t, minimal+tt.text)})
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("error is %v, want ErrInvalid", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error does not say %q:\n%v", tt.want, err)
			}
		})
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := Load(Request{File: write(t, minimal+"rollout:\n  group_sise: 4\n  max_tokens: x\ngrpo:\n  losss: ppo\n"), Set: []string{"a.b=1", "novalue", "stages.nope.steps=1"}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"group_sise", "max_tokens", "losss", "a.b", "novalue", `no stage "nope"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s:\n%v", want, err)
		}
	}
}

func TestMisspeltVariableIsRefused(t *testing.T) {
	_, err := Load(Request{File: write(t, minimal), Env: []string{"UADT_ROLLOUT_GROUPSIZE=4"}})
	if err == nil || !strings.Contains(err.Error(), "UADT_ROLLOUT_GROUPSIZE") {
		t.Errorf("error is %v", err)
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load(Request{File: filepath.Join(t.TempDir(), "absent.yaml")})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "absent.yaml") {
		t.Errorf("error is %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("stages: [1, {name: x}]\nuadt: {lambda: {shape: cosine}}"))
	f.Add([]byte("? [a]: b\n"))
	f.Add([]byte("a: &a [*a]"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "fuzz.yaml")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(Request{File: path}); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("an error outside ErrInvalid: %v", err)
		}
	})
}
