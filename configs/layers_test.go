package configs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"
)

// drawText draws a value of k from inside its range, or any of its type.
func drawText(t *rapid.T, k Key, values map[string][]string) string {
	if good := values[k.Name]; len(good) > 0 {
		return rapid.SampledFrom(good).Draw(t, k.Name)
	}
	switch k.Type {
	case "true or false":
		return rapid.SampledFrom([]string{"true", "false"}).Draw(t, k.Name)
	case typeList:
		return rapid.SampledFrom([]string{"", "a", "a,b", "http://h:8000/v1,0123", "[x, y]", "c: d"}).Draw(t, k.Name)
	}
	return rapid.SampledFrom(oddTexts).Draw(t, k.Name)
}

// oddTexts are texts that YAML would read as something else, or cut.
var oddTexts = []string{
	"", "a", "0123", "1e3", "0x1F", "1_000", "2024-01-01", "12:30", "yes", "off", "a #b", "a: b", "- a", "[a", "*a", "&a", "!a", "%a",
	" a ", "a\tb", "a\nb", "\u00e9\u4e00", "'", "\"", "a'b\"c", "a\\nb", "http://h:1/x?y=z#f", "..", ".5", "=", "\u2028",
}

// goodValues are the values inside the range of every key that has one.
func goodValues(t *testing.T) map[string][]string {
	t.Helper()
	values := map[string][]string{}
	for _, k := range Keys() {
		if k.Range != "" && k.Range != "unique" {
			values[k.Name] = examplesOf(t, k).good
		}
	}
	return values
}

// rapidFile returns what writes a file that the cases of one property share.
func rapidFile(t *testing.T) func(text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run.yaml")
	return func(text []byte) string {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// A value comes from the highest layer that gives its key, whatever the other
// keys do, and Origins says which layer that was.
func TestTheHighestLayerWins(t *testing.T) {
	values, file := goodValues(t), rapidFile(t)
	keys := slices.DeleteFunc(Keys(), func(k Key) bool { return strings.HasPrefix(k.Name, stagesPrefix) })
	rapid.Check(t, func(t *rapid.T) {
		tree := map[string]any{}
		var set, env []string
		want, origin := Defaults(), map[string]string{}
		root := reflect.ValueOf(&want).Elem()
		give := func(k Key, raw any, from string) {
			if err := assign(root.FieldByIndex(k.index), raw); err != nil {
				t.Fatalf("%s: %v", k.Name, err)
			}
			origin[k.Name] = from
		}
		for _, k := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, 8, func(k Key) string { return k.Name }).Draw(t, "keys") {
			layers := rapid.SliceOfN(rapid.Bool(), 3, 3).Draw(t, "layers of "+k.Name)
			if layers[0] {
				var scratch Config
				value := reflect.ValueOf(&scratch).Elem().FieldByIndex(k.index)
				if err := assign(value, k.read(drawText(t, k, values))); err != nil {
					t.Fatalf("%s: %v", k.Name, err)
				}
				section, short, nested := strings.Cut(k.Name, ".")
				if !nested {
					tree[section] = plain(value)
				} else {
					if tree[section] == nil {
						tree[section] = map[string]any{}
					}
					tree[section].(map[string]any)[short] = plain(value)
				}
				give(k, plain(value), "file")
			}
			if layers[1] {
				text := drawText(t, k, values)
				env = append(env, "UADT_"+strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_"))+"="+text)
				give(k, k.read(text), "env")
			}
			if layers[2] {
				text := drawText(t, k, values)
				set = append(set, k.Name+"="+drawText(t, k, values), k.Name+"="+text) // the last of a key wins
				give(k, k.read(text), "--set")
			}
		}
		data, err := yaml.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		// What contradicts another key is refused, but merged none the less.
		got, err := Load(Request{File: file(data), Env: env, Set: set})
		if diff := Diff(want, got.Config); len(diff) > 0 {
			t.Fatalf("%+v (%v)\nfile\n%s\nenv %q\nset %q", diff, err, data, env, set)
		}
		for _, k := range keys {
			from := got.Origins[k.Name]
			if want := origin[k.Name]; want == "" && from != "default" || want == "file" && !strings.Contains(from, "run.yaml:") || want != "file" && !strings.HasPrefix(from, want) {
				t.Fatalf("%s comes from %q, Origins says %q", k.Name, want, from)
			}
		}
	})
}

// drawConfig draws a configuration of any values that the types allow.
func drawConfig(t *rapid.T, values map[string][]string) Config {
	c := Defaults()
	for range rapid.IntRange(0, 3).Draw(t, "stages") {
		c.Stages = append(c.Stages, stageDefaults())
	}
	for _, k := range Keys() {
		targets := []reflect.Value{}
		if strings.HasPrefix(k.Name, stagesPrefix) {
			for i := range c.Stages {
				targets = append(targets, reflect.ValueOf(&c.Stages[i]).Elem().FieldByIndex(k.index))
			}
		} else if rapid.Bool().Draw(t, "change "+k.Name) {
			targets = append(targets, reflect.ValueOf(&c).Elem().FieldByIndex(k.index))
		}
		for _, target := range targets {
			if err := assign(target, k.read(drawText(t, k, values))); err != nil {
				t.Fatalf("%s: %v", k.Name, err)
			}
		}
	}
	return c
}

// What `config show` prints loads back to the same configuration, with the
// origins of its values in comments or without; a run directory rests on that.
func TestYAMLRoundTrip(t *testing.T) {
	values, file := goodValues(t), rapidFile(t)
	rapid.Check(t, func(t *rapid.T) {
		want := drawConfig(t, values)
		text, err := want.YAML()
		if err != nil {
			t.Fatal(err)
		}
		once, _ := Load(Request{File: file(text)}) // contradictions are merged none the less
		if !reflect.DeepEqual(once.Config, want) {
			t.Fatalf("%+v\n%s", Diff(want, once.Config), text)
		}
		again, err := once.YAML() // now every value has an origin in the file
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := Load(Request{File: file(again)}); !reflect.DeepEqual(twice.Config, want) {
			t.Fatalf("with origins: %+v (%v)\n%s", Diff(want, twice.Config), err, again)
		}
	})
}

// Two configurations differ where Diff says so, and what a run directory
// records of them (Values) differs there too: a difference that Values hides
// would resume a run with other settings.
func TestDiffAndValuesSeeEveryDifference(t *testing.T) {
	values := goodValues(t)
	rapid.Check(t, func(t *rapid.T) {
		a := drawConfig(t, values)
		b := a
		b.Stages = slices.Clone(a.Stages)
		keys := slices.DeleteFunc(Keys(), func(k Key) bool {
			return strings.HasPrefix(k.Name, stagesPrefix) && len(a.Stages) == 0 || k.Name == "stages.*.name"
		})
		k := rapid.SampledFrom(keys).Draw(t, "key")
		target := field(&b, k)
		if err := assign(target, k.read(drawText(t, k, values))); err != nil {
			t.Fatal(err)
		}
		name := k.Name
		if short, ok := strings.CutPrefix(name, stagesPrefix); ok {
			name = "stages." + a.Stages[0].Name + "." + short
		}
		same := reflect.DeepEqual(field(&a, k).Interface(), target.Interface())
		diff := Diff(a, b)
		if same != (len(diff) == 0) || !same && (len(diff) != 1 || diff[0].Key != name || diff[0].Class != k.Class || diff[0].A == diff[0].B) {
			t.Fatalf("%s: the same is %v, diff %+v", name, same, diff)
		}
		va, vb := a.Values(), b.Values()
		var changed []Value
		for i := range va {
			if va[i] != vb[i] {
				changed = append(changed, vb[i])
			}
		}
		if same != (len(changed) == 0) || !same && (len(changed) != 1 || changed[0].Key != name || changed[0].Class != k.Class) {
			t.Fatalf("%s: the same is %v, changed values %+v", name, same, changed)
		}
	})
}

// The keys that may change when a run resumes. A key that is added locks a run
// to its value unless it is listed here, and nothing in this list reaches what
// is computed.
func TestWhatMayChangeOnResume(t *testing.T) {
	loose := []string{
		"bus.credentials", "bus.listen", "bus.url", "checkpoint.every", "checkpoint.keep", "log.format", "log.level", "log.prometheus", "name",
		"reward.judge_url", "reward.timeout", "rollout.concurrency", "rollout.servers", "rollout.timeout", "rollout.workers", "runs_dir",
		"stages.*.steps", "trainer.launch", "trainer.python", "trainer.ranks", "trainer.sharding", "trainer.timeout", "trainer.token_budget", "trainer.weights",
	}
	var got []string
	values := goodValues(t)
	for _, k := range Keys() {
		if k.Class == Identity {
			continue
		}
		got = append(got, k.Name)
		before := load(t, minimal).Config
		for _, text := range append(values[k.Name], "x") {
			after := load(t, minimal).Config
			if err := assign(field(&after, k), k.read(text)); err != nil {
				continue // x is no number
			}
			after.Reward.Timeout = before.Reward.Timeout // a limit, though it is in Scoring
			if !reflect.DeepEqual(before.Shaping(), after.Shaping()) || before.Advantage() != after.Advantage() || !reflect.DeepEqual(before.StepOptions(), after.StepOptions()) ||
				!reflect.DeepEqual(before.Scoring(), after.Scoring()) || before.Optimizer(before.Stages[0]) != after.Optimizer(after.Stages[0]) {
				t.Errorf("%s may change on resume, but %q changes what is computed", k.Name, text)
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, loose) {
		t.Errorf("keys that may change on resume are\n%q, want\n%q", got, loose)
	}
}

// A part of a schedule is no key of its own: its problem is where the key was set.
func TestEveryPartOfAProblemHasTheOriginOfItsKey(t *testing.T) {
	for _, tt := range []struct{ set, want string }{
		{"uadt.lambda={shape: cosine, from: 1, to: -2, over: 5}", "--set: uadt.lambda.to: -2"},
		{"uadt.gamma={half_life: 200%}", "--set: uadt.gamma.half_life: 200%"},
		{"stages.think.steps=0", "--set: stages.0.steps: 0"},
	} {
		_, err := Load(Request{File: write(t, minimal), Set: []string{tt.set}})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", tt.set, tt.want, err)
		}
	}
	file := write(t, minimal+"uadt:\n  gain: {shape: linear, from: 1, to: 0, over: 0}\n")
	if _, err := Load(Request{File: file}); err == nil || !strings.Contains(err.Error(), file+":12: uadt.gain.over") {
		t.Errorf("got %v", err)
	}
}

// What a file says and nobody would read is refused, not passed over.
func TestNothingInAFileIsPassedOver(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"a stage's key at the top", "stages.think.steps: 7\n", ":11: stages.think.steps has a dot"},
		{"a dotted key", "rollout.group_size: 4\n", ":11: rollout.group_size has a dot"},
		{"a dotted key in a section", "rollout: {group.size: 4}\n", "rollout.group.size has a dot"},
		{"a misspelt section", "rolout: {group_size: 4}\n", ":11: unknown key rolout, did you mean rollout?"},
		{"a second document", "---\nname: second\n", ":11: a second document begins, want one"},
		{"a key of a stage that is one of a run", "    seed: 4\n", ":11: unknown key stages.0.seed"},
		{"a list for a section", "rollout: [1]\n", "rollout is a section"},
		{"a stage that is no map", "  - think\n", ":11: a stage has keys and values"},
		{"a list of numbers", "trainer: {lora_targets: 4}\n", "trainer.lora_targets: 4 is not a list"},
		{"a map for a text", "eval: {data: {a: b}}\n", "eval.data: map[a:b] is not text"},
		{"a map for a number", "eval: {traces: {a: b}}\n", "eval.traces: map[a:b] is not a whole number"},
		{"too large", "eval: {traces: 99999999999999999999}\n", "eval.traces: 1e+20 is not a whole number"},
		{"bool", "uadt: {carry: maybe}\n", `uadt.carry: "maybe" is not true or false`},
	} {
		_, err := Load(Request{File: write(t, minimal+tt.text)})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", tt.name, tt.want, err)
		}
	}
	if _, err := Load(Request{File: write(t, "stages: {think: 4}\n")}); err == nil || !strings.Contains(err.Error(), ":1: stages is a list of stages") {
		t.Errorf("stages as a map: %v", err)
	}
	if _, err := Load(Request{File: write(t, "- a\n")}); err == nil || !strings.Contains(err.Error(), ":1: want keys and values") {
		t.Errorf("a list as the file: %v", err)
	}
}

func TestSetAndVariables(t *testing.T) {
	text := minimal + "eval: {data: held.json}\nrollout: {servers: [\"http://a\"]}\n"
	c := load(t, text, "eval.data=", "rollout.servers=", "stages.think.name=other", "stages.think.steps=7")
	if c.Eval.Data != "" || c.Rollout.Servers != nil || c.Stages[0].Name != "other" || c.Stages[0].Steps != 7 {
		t.Errorf("--set that empties or renames: %q, %q, %+v", c.Eval.Data, c.Rollout.Servers, c.Stages[0])
	}
	c = load(t, strings.Replace(minimal, "name: test", "name: 0123", 1)+"eval: {data: 1e3}\ntrainer: {python: }\n")
	if c.Name != "0123" || c.Eval.Data != "1e3" || c.Trainer.Python != "python3" {
		t.Errorf("texts of a file that look like numbers: %q, %q, %q", c.Name, c.Eval.Data, c.Trainer.Python)
	}
	if _, err := Load(Request{File: write(t, minimal+"rollout: {servers: [0x10, 2024-01-01]}\n")}); err == nil || !strings.Contains(err.Error(), `servers: "0x10" `) || !strings.Contains(err.Error(), `servers: "2024-01-01" `) {
		t.Errorf("a list of texts that look like numbers: %v", err)
	}
	c = load(t, minimal+"eval: {questions: }\n    \n")
	if c.Eval.Questions != 128 || c.Origins["eval.questions"] != "default" {
		t.Errorf("a null is no default: %d from %s", c.Eval.Questions, c.Origins["eval.questions"])
	}
	loaded, err := Load(Request{File: write(t, text), Env: []string{
		"UADT_EVAL_DATA=", "UADT_UADT_LAMBDA=0.25", "UADT_UADT_GAMMA={half_life: 6}", "UADT_ROLLOUT_SERVERS=[http://b, http://c]", "UADT_UADT_PLACEBO=false", "UADT_NAME=1e3",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Eval.Data != "" || loaded.UADT.Lambda.From != 0.25 || loaded.UADT.Gamma.HalfLife.Steps != 6 || len(loaded.Rollout.Servers) != 2 || loaded.UADT.Placebo != "off" || loaded.Name != "1e3" {
		t.Errorf("the environment is not read as --set is: %+v", loaded.Config)
	}
	for _, tt := range []struct{ set, want string }{
		{"rollout=4", "--set: rollout is a section, want one of its keys, such as rollout.servers"},
		{"stages=4", "--set: stages is a section, want one of its keys, such as stages.*.name"},
		{"rollout.group_size=", `--set: rollout.group_size: "" is not a whole number`},
		{"stages.think.steps=null", `--set: stages.think.steps: "null" is not a whole number`},
		{"stages.nope.steps=1", `--set: stages.nope.steps: there is no stage "nope"`},
		{"name", "--set name: want key=value"},
		{"=1", "--set: unknown key"},
	} {
		_, err := Load(Request{File: write(t, minimal), Set: []string{tt.set}})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("--set %s: want %q alone, got %v", tt.set, tt.want, err)
		}
	}
}

// Every key can be misspelt by one letter and is then suggested.
func TestMisspeltKeysAreSuggested(t *testing.T) {
	for _, k := range Keys() {
		for _, cut := range []int{len(k.Name) - 1, len(k.Name) / 2} {
			wrong := k.Name[:cut] + k.Name[cut+1:]
			if _, known := find(wrong); known {
				continue
			}
			_, err := Explain(wrong)
			if err == nil {
				t.Errorf("%s is explained", wrong)
				continue
			}
			_, after, _ := strings.Cut(err.Error(), "did you mean ")
			if near := strings.TrimSuffix(after, "?"); distance(wrong, near) > 1 {
				t.Errorf("%s: want a key one letter away, such as %s: %v", wrong, k.Name, err)
			}
		}
	}
}

// The distance that suggestions rest on is one: zero to itself alone, the same
// both ways, and no detour is shorter.
func TestDistanceIsAMetric(t *testing.T) {
	words := rapid.StringMatching(`[ab.]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := words.Draw(t, "a"), words.Draw(t, "b"), words.Draw(t, "c")
		if (distance(a, b) == 0) != (a == b) || distance(a, b) != distance(b, a) || distance(a, c) > distance(a, b)+distance(b, c) {
			t.Fatal(fmt.Sprint(a, b, c, distance(a, b), distance(b, a), distance(a, c), distance(b, c)))
		}
	})
}
