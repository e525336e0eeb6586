package configs

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// ancestor is the recipe of VLM-R1 for referring expressions (Qwen2.5-VL-3B)
// and for InternVL alike, as far as a key of ours says the same thing.
// stages.rl is the stage of that kind.
var ancestor = map[string]string{
	"stages.rl.learning_rate": "1e-06", "stages.rl.weight_decay": "0", "stages.rl.frozen": "[]",
	"rollout.questions_per_step": "16", "rollout.group_size": "8", "rollout.temperature": "0.9", "rollout.top_p": "1", "rollout.top_k": "50",
	"rollout.max_tokens": "2048", "rollout.max_staleness": "0", "rollout.dynamic_sampling": "false",
	"reward.format": "1", "reward.answer": "1",
	"grpo.advantage": "grpo", "grpo.eps": "0.0001", "grpo.loss": "ppo", "grpo.clip_low": "0.2", "grpo.clip_high": "0.2", "grpo.dual_clip": "0",
	"grpo.kl": "k3", "grpo.kl_coef": "0.04", "grpo.kl_in": "loss", "grpo.kl_clamp": "false", "grpo.aggregation": "seq_mean_token_mean",
	"grpo.updates_per_rollout": "1", "grpo.correction": "off", "grpo.entropy_bonus": "0", "grpo.entropy_quantile": "0",
	"uadt.rule": "none", "data.images_first": "true", "model.max_pixels": "12845056", "trainer.ranks": "8",
}

// departures are the keys in which both recipes differ from the ancestor, and
// why.
var departures = map[string]string{
	"rollout.top_k":     "the trainer cannot recompute a filtered distribution, so old log-probabilities and entropies would be of another one",
	"uadt.rule":         "what these recipes are for; a reconstruction, not the paper's formula",
	"data.images_first": "the authors' evaluation shows the text first, and that is how the released models are asked",
	"model.max_pixels":  "records have up to six images; at 12,845,056 pixels one alone is 16,384 tokens and leaves no room in a micro-batch",
	"trainer.ranks":     "placement: a recipe starts on one GPU",
}

func valueOf(t *testing.T, c Config, name string) string {
	t.Helper()
	if field, ok := strings.CutPrefix(name, "stages.rl."); ok {
		at := slices.IndexFunc(c.Stages, func(s Stage) bool { return s.Kind == "rl" })
		if at < 0 {
			t.Fatal("no rl stage")
		}
		key, ok := find(stagesPrefix + field)
		if !ok {
			t.Fatalf("no key %s", name)
		}
		return fmt.Sprint(reflect.ValueOf(c.Stages[at]).FieldByIndex(key.index).Interface())
	}
	key, ok := find(name)
	if !ok {
		t.Fatalf("no key %s", name)
	}
	return fmt.Sprint(reflect.ValueOf(c).FieldByIndex(key.index).Interface())
}

// Every key that differs from the ancestor is listed with its reason, and no
// other is.
func TestRecipesDepartFromTheirAncestorOnlyWithAReason(t *testing.T) {
	for _, file := range []string{"qwen3b.yaml", "intern2b.yaml"} {
		loaded, err := Load(Request{File: file})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(ancestor)) {
			got, reason := valueOf(t, loaded.Config, name), departures[name]
			switch {
			case got != ancestor[name] && reason == "":
				t.Errorf("%s: %s is %s, the ancestor's is %s, and no reason is given", file, name, got, ancestor[name])
			case got == ancestor[name] && reason != "":
				t.Errorf("%s: %s is the ancestor's, but a reason for departing is given", file, name)
			case reason != "":
				t.Logf("%s: %s: %s, the ancestor's %s: %s", file, name, got, ancestor[name], reason)
			}
		}
	}
	for name := range departures {
		if _, ok := ancestor[name]; !ok {
			t.Errorf("%s is said to depart from an ancestor that has no such key", name)
		}
	}
}

// The recipes have the three stages of the paper, at most 60 keys, and say of
// every value whose it is.
func TestRecipesNameTheSourceOfEveryValue(t *testing.T) {
	for _, file := range []string{"qwen3b.yaml", "intern2b.yaml"} {
		loaded, err := Load(Request{File: file})
		if err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, s := range loaded.Stages {
			kinds = append(kinds, string(s.Kind))
		}
		if want := []string{"align", "sft", "rl"}; !slices.Equal(kinds, want) {
			t.Errorf("%s: stages %v, want %v", file, kinds, want)
		}
		if len(loaded.Stages[0].Frozen) != 1 || loaded.Stages[0].Frozen[0] != "language" {
			t.Errorf("%s: alignment freezes %v, want the language model alone", file, loaded.Stages[0].Frozen)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		keys := 0
		for i, line := range strings.Split(string(text), "\n") {
			body, comment, _ := strings.Cut(line, " #")
			key, value, isKey := strings.Cut(strings.TrimPrefix(strings.TrimSpace(body), "- "), ":")
			if !isKey || strings.HasPrefix(line, "#") || strings.TrimSpace(value) == "" {
				continue
			}
			keys++
			named := slices.ContainsFunc([]string{"ours", "VLM-R1", "authors", "the paper's", "the base"}, func(s string) bool { return strings.Contains(comment, s) })
			if !named && key != "name" {
				t.Errorf("%s:%d: %s has no source in its comment", file, i+1, key)
			}
		}
		if keys > 60 {
			t.Errorf("%s sets %d keys, want at most 60", file, keys)
		}
		t.Logf("%s sets %d keys", file, keys)
	}
}
