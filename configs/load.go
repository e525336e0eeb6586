package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/viper"
	"gopkg.in/yaml.v3"
)

// ErrInvalid is wrapped by every error about a configuration itself.
var ErrInvalid = errors.New("invalid configuration")

// envPrefix starts the name of every variable that sets a key.
const envPrefix = "UADT"

// Loaded is a configuration with where each of its values came from.
type Loaded struct {
	Config
	// Origins maps a key to "default", "FILE:LINE", "env NAME" or "--set".
	// Fields of stage i are called stages.i.field.
	Origins map[string]string
}

// Request says what to load.
type Request struct {
	File string   // YAML file; empty loads the defaults
	Set  []string // key=value, the last of a key winning; stages.NAME.field sets one stage's
	Env  []string // environment as os.Environ gives it
}

// Load reads, merges and validates. Every problem found is reported, each on a
// line of its own, joined under ErrInvalid.
func Load(request Request) (Loaded, error) {
	var problems []error
	file, lines, fileProblems := readFile(request.File)
	problems = append(problems, fileProblems...)
	set, setProblems := parseSet(request.Set)
	problems = append(problems, setProblems...)
	problems = append(problems, unknownEnv(request.Env)...)

	loaded := Loaded{Config: Defaults(), Origins: map[string]string{}}
	problems = append(problems, loaded.fill(request, file, lines, set)...)
	if len(problems) == 0 {
		problems = append(problems, loaded.located(loaded.Config.Validate())...)
	}
	if len(problems) > 0 {
		return loaded, fmt.Errorf("%w\n  %s", ErrInvalid, joinLines(problems))
	}
	return loaded, nil
}

func joinLines(problems []error) string {
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.Error()
	}
	return strings.Join(texts, "\n  ")
}

// fill assigns every key from the layer that wins it: viper keeps the order
// defaults < file < environment < --set.
func (l *Loaded) fill(request Request, file map[string]any, lines map[string]int, set map[string]string) []error {
	v := viper.New()
	if err := v.MergeConfigMap(file); err != nil {
		return []error{fmt.Errorf("%s: %w", request.File, err)}
	}
	env := environment(request.Env)
	var problems []error
	root := reflect.ValueOf(&l.Config).Elem()
	for _, key := range keys() {
		if strings.HasPrefix(key.Name, stagesPrefix) {
			continue
		}
		field := root.FieldByIndex(key.index)
		origin := "default"
		if line, ok := lines[key.Name]; ok && v.IsSet(key.Name) { // a null leaves the default
			origin = fmt.Sprintf("%s:%d", request.File, line)
		}
		v.SetDefault(key.Name, plain(field))
		if text, ok := env[envName(key.Name)]; ok {
			v.Set(key.Name, key.read(text))
			origin = "env " + envName(key.Name)
		}
		if text, ok := set[key.Name]; ok {
			v.Set(key.Name, key.read(text))
			origin = "--set"
		}
		l.Origins[key.Name] = origin
		if err := assign(field, v.Get(key.Name)); err != nil {
			problems = append(problems, fmt.Errorf("%s: %s: %w, want %s", origin, key.Name, err, key.Type))
		}
	}
	return append(problems, l.fillStages(request, file["stages"], lines, set)...)
}

func (l *Loaded) fillStages(request Request, raw any, lines map[string]int, set map[string]string) []error {
	var problems []error
	var names []string // as the file has them: --set may give another
	items, _ := raw.([]any)
	for i, item := range items {
		fields, _ := item.(map[string]any)
		stage := stageDefaults()
		root := reflect.ValueOf(&stage).Elem()
		name := fmt.Sprint(fields["name"])
		names = append(names, name)
		for _, key := range keys() {
			short, ok := strings.CutPrefix(key.Name, stagesPrefix)
			if !ok {
				continue
			}
			full := fmt.Sprintf("stages.%d.%s", i, short)
			value, origin := fields[short], "default"
			if value != nil {
				origin = fmt.Sprintf("%s:%d", request.File, lines[full])
			}
			if text, ok := set["stages."+name+"."+short]; ok {
				value, origin = key.read(text), "--set"
			}
			l.Origins[full] = origin
			if value == nil {
				continue
			}
			if err := assign(root.FieldByIndex(key.index), value); err != nil {
				problems = append(problems, fmt.Errorf("%s: stages.%s.%s: %w, want %s", origin, name, short, err, key.Type))
			}
		}
		l.Stages = append(l.Stages, stage)
	}
	for _, key := range slices.Sorted(maps.Keys(set)) {
		parts := strings.SplitN(key, ".", 3)
		if parts[0] == "stages" && !slices.Contains(names, parts[1]) {
			problems = append(problems, fmt.Errorf("--set: %s: there is no stage %q", key, parts[1]))
		}
	}
	return problems
}

func envName(key string) string {
	return envPrefix + "_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func environment(env []string) map[string]string {
	values := map[string]string{}
	for _, entry := range env {
		if name, value, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, envPrefix+"_") {
			values[name] = value
		}
	}
	return values
}

// unknownEnv refuses variables that look like keys but are none: a misspelt
// variable would otherwise be ignored in silence.
func unknownEnv(env []string) []error {
	known := map[string]bool{}
	sections := map[string]bool{}
	for _, key := range keys() {
		known[envName(key.Name)] = true
		section, _, _ := strings.Cut(key.Name, ".")
		sections[envName(section)] = true
	}
	var problems []error
	for name := range environment(env) {
		section := strings.Join(strings.SplitN(name, "_", 3)[:2], "_")
		if !known[name] && sections[section] {
			problems = append(problems, fmt.Errorf("env %s: no such key", name))
		}
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return problems
}

func parseSet(entries []string) (map[string]string, []error) {
	values := map[string]string{}
	var problems []error
	for _, entry := range entries {
		key, value, ok := strings.Cut(entry, "=")
		if !ok {
			problems = append(problems, fmt.Errorf("--set %s: want key=value", entry))
			continue
		}
		if _, known := find(key); !known {
			problems = append(problems, unknownKey("--set", key))
			continue
		}
		values[key] = value
	}
	return values, problems
}

func unknownKey(place, name string) error {
	for _, key := range keys() {
		if strings.HasPrefix(key.Name, name+".") {
			return fmt.Errorf("%s: %s is a section, want one of its keys, such as %s", place, name, key.Name)
		}
	}
	if near := nearest(name); near != "" {
		return fmt.Errorf("%s: unknown key %s, did you mean %s?", place, name, near)
	}
	return fmt.Errorf("%s: unknown key %s", place, name)
}

// readFile parses the YAML file and checks that every key in it is known.
func readFile(path string) (values map[string]any, lines map[string]int, problems []error) {
	if path == "" {
		return nil, nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, []error{fmt.Errorf("configuration file: %w", err)}
	}
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&document); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, []error{fmt.Errorf("%s: %w", path, err)}
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, nil, []error{fmt.Errorf("%s:%d: a second document begins, want one", path, second.Line)}
	}
	lines = map[string]int{}
	problems = walk(path, &document, "", lines)
	if err := document.Decode(&values); err != nil && len(problems) == 0 {
		problems = append(problems, fmt.Errorf("%s: %w", path, err))
	}
	return values, lines, problems
}
