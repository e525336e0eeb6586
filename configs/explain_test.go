package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestResolvedConfigurationLoadsBack(t *testing.T) {
	first := load(t, minimal+"uadt:\n  lambda: {shape: linear, from: 0.5, to: 0, over: 60, warmup: 5}\n  gamma: 0.9\n")
	data, err := first.YAML()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "resolved.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	second, err := Load(Request{File: path})
	if err != nil {
		t.Fatalf("the resolved file does not load: %v\n%s", err, data)
	}
	if !reflect.DeepEqual(first.Config, second.Config) {
		t.Errorf("the resolved file loads to something else: %v", Diff(first.Config, second.Config))
	}
}

func TestDiffNamesKeysAndClasses(t *testing.T) {
	a := load(t, minimal).Config
	b := load(t, minimal, "stages.think.steps=90", "rollout.concurrency=7", "uadt.rule=none").Config
	got := Diff(a, b)
	want := []Difference{
		{Key: "stages.think.steps", Class: Horizon, A: "60", B: "90"},
		{Key: "rollout.concurrency", Class: Placement, A: "64", B: "7"},
		{Key: "uadt.rule", Class: Identity, A: "c1", B: "none"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("diff = %+v\nwant %+v", got, want)
	}
	if d := Diff(a, a); len(d) != 0 {
		t.Errorf("a configuration differs from itself: %v", d)
	}
}

func TestKeysAreFewAndDocumented(t *testing.T) {
	keys := Keys()
	if len(keys) > 100 {
		t.Errorf("there are %d keys, at most 100 are allowed", len(keys))
	}
	seen := map[string]bool{}
	for _, k := range keys {
		if k.Help == "" {
			t.Errorf("%s has no help", k.Name)
		}
		if seen[k.Name] {
			t.Errorf("%s is listed twice", k.Name)
		}
		seen[k.Name] = true
		switch k.Class {
		case Identity, Placement, Horizon:
		default:
			t.Errorf("%s has class %q", k.Name, k.Class)
		}
		text, err := Explain(k.Name)
		if err != nil || !strings.Contains(text, k.Help) {
			t.Errorf("explain %s: %q, %v", k.Name, text, err)
		}
	}
}

func TestExplainSuggests(t *testing.T) {
	_, err := Explain("uadt.lamda")
	if err == nil || !strings.Contains(err.Error(), "uadt.lambda") {
		t.Errorf("error is %v", err)
	}
}

// A default that validation refuses would make every small recipe fail.
func TestDefaultsAreValid(t *testing.T) {
	c := Defaults()
	for _, p := range c.Validate() {
		if p.Key != "model.path" && p.Key != "stages" {
			t.Errorf("the default of %s is refused: %s", p.Key, p.Text)
		}
	}
}

// Every field of every section must be reachable by its key: a forgotten tag
// would make a setting silently impossible.
func TestEveryFieldHasAKey(t *testing.T) {
	var count func(reflect.Type) int
	count = func(typ reflect.Type) int {
		n := 0
		for i := range typ.NumField() {
			field := typ.Field(i)
			if field.Tag.Get("key") == "" {
				t.Errorf("%s.%s has no key", typ.Name(), field.Name)
			}
			switch {
			case field.Type == reflect.TypeFor[[]Stage]():
				n += count(reflect.TypeFor[Stage]())
			case isSection(field.Type):
				n += count(field.Type)
			default:
				n++
			}
		}
		return n
	}
	if n := count(reflect.TypeFor[Config]()); n != len(Keys()) {
		t.Errorf("%d fields but %d keys", n, len(Keys()))
	}
}

func TestOptionsCarryEveryUADTKey(t *testing.T) {
	c := load(t, minimal).Config
	v := reflect.ValueOf(&c.UADT).Elem()
	for i := range v.NumField() {
		before := c.Shaping()
		changed := c
		field := reflect.ValueOf(&changed.UADT).Elem().Field(i)
		name := v.Type().Field(i).Name
		switch field.Kind() {
		case reflect.Bool:
			field.SetBool(!field.Bool())
		case reflect.String:
			field.SetString("changed")
		case reflect.Float64:
			field.SetFloat(field.Float() + 1)
		case reflect.Struct:
			if err := assign(field, 0.123); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("no way to change %s", name)
		}
		if reflect.DeepEqual(before, changed.Shaping()) {
			t.Errorf("uadt.%s does not reach the shaper", name)
		}
	}
}
