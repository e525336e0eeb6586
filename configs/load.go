package configs

import (
	"errors"
	"fmt"
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
	for _, key := range Keys() {
		if strings.HasPrefix(key.Name, stagesPrefix) {
			continue
		}
		field := root.FieldByIndex(key.index)
		v.SetDefault(key.Name, plain(field))
		origin := "default"
		if line, ok := lines[key.Name]; ok {
			origin = fmt.Sprintf("%s:%d", request.File, line)
		}
		if value, ok := env[envName(key.Name)]; ok {
			v.Set(key.Name, value)
			origin = "env " + envName(key.Name)
		}
		if value, ok := set[key.Name]; ok {
			v.Set(key.Name, yamlScalar(value))
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
	items, _ := raw.([]any)
	for i, item := range items {
		fields, _ := item.(map[string]any)
		stage := stageDefaults()
		root := reflect.ValueOf(&stage).Elem()
		name := fmt.Sprint(fields["name"])
		for _, key := range Keys() {
			short, ok := strings.CutPrefix(key.Name, stagesPrefix)
			if !ok {
				continue
			}
			full := fmt.Sprintf("stages.%d.%s", i, short)
			value, given := fields[short]
			origin := "default"
			if given {
				origin = fmt.Sprintf("%s:%d", request.File, lines[full])
			}
			if text, ok := set["stages."+name+"."+short]; ok {
				value, given, origin = yamlScalar(text), true, "--set"
			}
			l.Origins[full] = origin
			if !given {
				continue
			}
			if err := assign(root.FieldByIndex(key.index), value); err != nil {
				problems = append(problems, fmt.Errorf("%s: stages.%s.%s: %w, want %s", origin, name, short, err, key.Type))
			}
		}
		l.Stages = append(l.Stages, stage)
	}
	for key := range set {
		parts := strings.SplitN(key, ".", 3)
		if parts[0] == "stages" && !slices.ContainsFunc(l.Stages, func(s Stage) bool { return s.Name == parts[1] }) {
			problems = append(problems, fmt.Errorf("--set: %s: there is no stage %q", key, parts[1]))
		}
	}
	return problems
}

func yamlScalar(text string) any {
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		return text
	}
	return value
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
	for _, key := range Keys() {
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
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, nil, []error{fmt.Errorf("%s: %w", path, err)}
	}
	lines = map[string]int{}
	problems = walk(path, &document, "", lines)
	if err := document.Decode(&values); err != nil && len(problems) == 0 {
		problems = append(problems, fmt.Errorf("%s: %w", path, err))
	}
	return values, lines, problems
}
