package configs

import (
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// examples are values of a key that its range lets pass and that it does not.
type examples struct{ good, bad []string }

// special are the ranges that say more than bounds or a choice of words.
var special = map[string]examples{
	"name":                     {[]string{"a", "A-1_b", "0123", "1e3", "2024-01-01"}, []string{"", "../a", "a b", "é", "a/b", "a."}},
	"stages.*.name":            {[]string{"a", "A-1_b", "007"}, []string{"", "a b", "a/b"}},
	"model.max_pixels":         {[]string{"3136", "1000000000"}, []string{"3135", "-1"}},
	"uadt.entropy":             {[]string{"exact", "surprisal", "topk1", "topk20"}, []string{"topk", "topk0", "Exact", ""}},
	"uadt.gamma":               {[]string{"0", "1", "{half_life: 6}", "half_life: 50%"}, []string{"-0.1", "1.1", "{half_life: 0}", "{half_life: 101%}"}},
	"uadt.lambda":              {[]string{"0", "3", "{shape: cosine, from: 0.5, to: 0, over: 50%}"}, []string{"-0.1", "{shape: cosine, from: 1, to: -1, over: 5}", "{shape: square, from: 1, to: 0, over: 5}"}},
	"uadt.gain":                {[]string{"0", "3"}, []string{"-1"}},
	"grpo.dual_clip":           {[]string{"0", "1.5", "3"}, []string{"1", "0.5", "-1"}},
	"grpo.updates_per_rollout": {[]string{"1", "16"}, []string{"0", "17"}},
}

// contexts is what a value needs of other keys to be allowed.
var contexts = map[string][]string{
	"trainer.ranks":        {"trainer.backend=pytorch"},
	"trainer.weights":      {"trainer.backend=pytorch", "trainer.lora_rank=8", "rollout.servers=http://a"},
	"trainer.lora_rank":    {"trainer.backend=pytorch"},
	"trainer.lora_targets": {"trainer.backend=pytorch", "trainer.lora_rank=8"},
	"reward.open":          {"reward.judge_url=http://a"},
}

var (
	halfOpen = regexp.MustCompile(`^(>=?) (\S+)$`)
	fromTo   = regexp.MustCompile(`^(\S+) to (\S+)$`)
	chained  = regexp.MustCompile(`^(\S+) (<=?) [a-z] (<=?) (\S+)$`)
)

// bounds reads a range of numbers. high is +Inf where there is none.
func bounds(text string) (low, high float64, lowIn, highIn, ok bool) {
	number := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		ok = ok && err == nil
		return v
	}
	ok = true
	if m := halfOpen.FindStringSubmatch(text); m != nil {
		return number(m[2]), math.Inf(1), m[1] == ">=", false, ok
	}
	if m := fromTo.FindStringSubmatch(text); m != nil {
		return number(m[1]), number(m[2]), true, true, ok
	}
	if m := chained.FindStringSubmatch(text); m != nil {
		return number(m[1]), number(m[4]), m[2] == "<=", m[3] == "<=", ok
	}
	return 0, 0, false, false, false
}

// examplesOf makes values at both sides of every edge of k's range.
func examplesOf(t *testing.T, k Key) examples {
	t.Helper()
	if e, ok := special[k.Name]; ok {
		return e
	}
	low, high, lowIn, highIn, ok := bounds(k.Range)
	if !ok {
		words := strings.Split(strings.ReplaceAll(k.Range, " or ", ", "), ", ")
		return examples{words, []string{"pigeon", strings.ToUpper(words[0])}}
	}
	unit, text := 1e-9, func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	switch k.Type {
	case "whole number":
		unit, text = 1, func(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }
	case "duration":
		text = func(v float64) string { return time.Duration(v * 1e9).String() }
	}
	var e examples
	add := func(edge, inwards float64, in bool) {
		e.good, e.bad = append(e.good, text(edge+inwards)), append(e.bad, text(edge-inwards))
		if in {
			e.good = append(e.good, text(edge))
		} else {
			e.bad = append(e.bad, text(edge))
		}
	}
	add(low, unit, lowIn)
	if math.IsInf(high, 1) {
		e.good = append(e.good, text(1e9)) // no bound is hidden
	} else {
		add(high, -math.Max(unit, high*1e-9), highIn)
	}
	return e
}

// field is the field of c that k names; stages.* is the first stage.
func field(c *Config, k Key) reflect.Value {
	if strings.HasPrefix(k.Name, stagesPrefix) {
		return reflect.ValueOf(&c.Stages[0]).Elem().FieldByIndex(k.index)
	}
	return reflect.ValueOf(c).Elem().FieldByIndex(k.index)
}

// problemsOf sets k to text in a valid configuration and returns what is then
// said about k. A value that is of another type is a problem too.
func problemsOf(t *testing.T, k Key, text string) []string {
	t.Helper()
	c := load(t, minimal, contexts[k.Name]...).Config
	if err := assign(field(&c, k), k.read(text)); err != nil {
		return []string{err.Error()}
	}
	var said []string
	for _, p := range c.Validate() {
		name := strings.Replace(k.Name, stagesPrefix, "stages.0.", 1)
		if p.Key == name || strings.HasPrefix(p.Key, name+".") { // to of a schedule, say
			said = append(said, p.Text)
		}
	}
	return said
}

// The range that explain prints is the one that is enforced: values just inside
// pass and values just outside do not, with no bound that it hides. What is
// refused is named.
func TestRangesAreThoseThatExplainPrints(t *testing.T) {
	for _, k := range Keys() {
		if k.Range == "" || k.Range == "unique" {
			continue
		}
		e := examplesOf(t, k)
		for _, value := range e.good {
			if said := problemsOf(t, k, value); len(said) > 0 {
				t.Errorf("%s: %s is in the range %q, but: %s", k.Name, value, k.Range, said)
			}
		}
		for _, value := range e.bad {
			said := problemsOf(t, k, value)
			if len(said) == 0 {
				t.Errorf("%s: %s is outside the range %q, but passes", k.Name, value, k.Range)
			} else if !strings.Contains(strings.Join(said, "\n"), value) && !strings.HasPrefix(value, "{") {
				if x, err := strconv.ParseFloat(value, 64); err != nil || !strings.Contains(strings.Join(said, "\n"), fmt.Sprint(x)) {
					t.Errorf("%s: the value %q is not in the message %s", k.Name, value, said)
				}
			}
		}
	}
}

// Two values that contradict each other: the problem is at the key that is said
// here, and there is none when either value stands alone with what it needs.
func TestContradictions(t *testing.T) {
	for _, tt := range []struct {
		set  []string // the last one is what is too much
		key  string
		text string
	}{
		{[]string{"rollout.allow_filtered=true", "rollout.top_p=0.9", "uadt.entropy=topk20"}, "uadt.entropy", "want exact"},
		{[]string{"rollout.allow_filtered=true", "grpo.correction=token"}, "grpo.correction", "token is refused"},
		{[]string{"rollout.top_k=50"}, "rollout.allow_filtered", "is false"},
		{[]string{"grpo.kl_coef=0.1", "grpo.kl=k1", "grpo.kl_in=reward", "grpo.kl=k2"}, "grpo.kl", "want k1"},
		{[]string{"grpo.kl=k3"}, "grpo.kl_coef", "is 0"},
		{[]string{"grpo.denominator=informative", "grpo.entropy_bonus=0.01"}, "grpo.denominator", "informative is refused"},
		{[]string{"rollout.questions_per_step=2", "grpo.updates_per_rollout=3"}, "grpo.updates_per_rollout", "3 is more than rollout.questions_per_step, 2"},
		{[]string{"trainer.ranks=2"}, "trainer.ranks", "2, but gorgonia"},
		{[]string{"stages.think.decay=cosine", "stages.think.warmup=61"}, "stages.0.warmup", "61 is more than the 60 updates"},
		{[]string{"stages.think.frozen=vision,projector,language"}, "stages.0.frozen", "leaves nothing to train"},
		{[]string{"stages.think.data="}, "stages.0.data", "names no file"},
		{[]string{"model.path="}, "model.path", "names no model directory"},
	} {
		last := len(tt.set) - 1
		if _, err := Load(Request{File: write(t, minimal), Set: tt.set[:last]}); err != nil {
			t.Errorf("%v without the last: %v", tt.set, err)
		}
		_, err := Load(Request{File: write(t, minimal), Set: tt.set})
		if err == nil || !strings.Contains(err.Error(), tt.key+": ") || !strings.Contains(err.Error(), tt.text) || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("%v: want one problem at %s that says %q, got %v", tt.set, tt.key, tt.text, err)
		}
	}
	double := minimal + "  - {name: think, kind: sft, data: x, steps: 1, learning_rate: 1e-4}\n"
	if _, err := Load(Request{File: write(t, double)}); err == nil || !strings.Contains(err.Error(), `stages.1.name: "think" is the name of an earlier stage`) {
		t.Errorf("two stages of one name: %v", err)
	}
}

// Whatever keys are bad, each is reported, exactly as if it were alone, at its
// layer, and nothing else is.
func TestEveryProblemIsReportedWhateverElseIsWrong(t *testing.T) {
	bad := map[string]string{
		"name": "a/b", "seed": "-1", "model.max_pixels": "1", "data.prompts": "pigeon", "data.max_bad_share": "2",
		"rollout.group_size": "1", "rollout.temperature": "0", "rollout.timeout": "-1s", "reward.multi": "pigeon", "reward.answer": "-1",
		"uadt.rule": "c9", "uadt.floor": "0", "grpo.min_std": "0", "grpo.loss": "pigeon", "grpo.clip_low": "2", "trainer.beta2": "1",
		"trainer.timeout": "0s", "eval.traces": "0", "checkpoint.keep": "0", "log.format": "pigeon", "stages.think.steps": "0", "stages.think.decay": "pigeon",
	}
	var keys []string
	alone := map[string]string{}
	file := write(t, minimal)
	for key, value := range bad {
		_, err := Load(Request{File: file, Set: []string{key + "=" + value}})
		if err == nil || strings.Count(err.Error(), "\n") != 1 {
			t.Fatalf("%s=%s: want one problem, got %v", key, value, err)
		}
		keys = append(keys, key)
		alone[key] = strings.Split(err.Error(), "\n")[1]
	}
	slices.Sort(keys)
	rapid.Check(t, func(t *rapid.T) {
		chosen := rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, len(keys), rapid.ID[string]).Draw(t, "keys")
		var set, want []string
		for _, key := range chosen {
			set, want = append(set, key+"="+bad[key]), append(want, alone[key])
		}
		_, err := Load(Request{File: file, Set: set})
		if err == nil {
			t.Fatalf("%v pass", set)
		}
		got := strings.Split(err.Error(), "\n")[1:]
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// The default that explain prints can be written into a recipe; where there is
// none to print, the recipe must give the key or may leave it empty.
func TestExplainedDefaultsCanBeSet(t *testing.T) {
	required := map[string]bool{"model.path": true, "stages.*.name": true, "stages.*.kind": true, "stages.*.data": true, "stages.*.steps": true, "stages.*.learning_rate": true}
	for _, k := range Keys() {
		text := defaultText(k)
		if required[k.Name] && text != "none" {
			t.Errorf("%s must be given, but explain says that its default is %s", k.Name, text)
		}
		if text == "none" || k.Type == typeList || strings.HasPrefix(text, "map[") {
			continue
		}
		if said := problemsOf(t, k, text); len(said) > 0 {
			t.Errorf("%s: its default %s is refused: %s", k.Name, text, said)
		}
	}
}
