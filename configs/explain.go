package configs

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Explain returns what is to be known about the key called name: meaning,
// type, unit, default, range, class and source.
func Explain(name string) (string, error) {
	key, ok := find(name)
	if !ok {
		return "", fmt.Errorf("%w: %w", ErrInvalid, unknownKey("explain", name))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", key.Name, key.Help)
	row := func(label, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  %-8s %s\n", label, text)
		}
	}
	row("type", key.Type)
	row("unit", key.Unit)
	row("range", key.Range)
	row("default", defaultText(key))
	row("class", string(key.Class))
	row("source", key.Source)
	return b.String(), nil
}

// defaultText is the default of key, or none: it is empty, or refused because a
// recipe must give the key.
func defaultText(key Key) string {
	c := Defaults()
	c.Stages = []Stage{stageDefaults()}
	root, name := reflect.ValueOf(c), key.Name
	if short, ok := strings.CutPrefix(key.Name, stagesPrefix); ok {
		root, name = reflect.ValueOf(c.Stages[0]), "stages.0."+short
	}
	text := fmt.Sprint(plain(root.FieldByIndex(key.index)))
	refused := slices.ContainsFunc(c.Validate(), func(p *Problem) bool { return p.Key == name })
	if text == "" || text == "[]" || refused {
		return "none"
	}
	return text
}

// YAML renders c, every key resolved. It loads back to the same configuration.
func (c Config) YAML() ([]byte, error) {
	return Loaded{Config: c}.YAML()
}

// YAML renders the configuration with the origin of every value that is not a
// default in a comment.
func (l Loaded) YAML() ([]byte, error) {
	document := &yaml.Node{Kind: yaml.MappingNode}
	root := reflect.ValueOf(l.Config)
	sections := map[string]*yaml.Node{"": document}
	for _, key := range Keys() {
		if strings.HasPrefix(key.Name, stagesPrefix) {
			if sections["stages"] == nil {
				list, err := l.stagesNode()
				if err != nil {
					return nil, err
				}
				sections["stages"] = list
				document.Content = append(document.Content, textNode("stages"), list)
			}
			continue
		}
		section, short, nested := strings.Cut(key.Name, ".")
		parent := document
		if nested {
			if parent = sections[section]; parent == nil {
				parent = &yaml.Node{Kind: yaml.MappingNode}
				sections[section] = parent
				document.Content = append(document.Content, textNode(section), parent)
			}
		} else {
			short = key.Name
		}
		if err := l.put(parent, short, key.Name, root.FieldByIndex(key.index)); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(document); err != nil {
		return nil, fmt.Errorf("configuration to yaml: %w", err)
	}
	return out.Bytes(), nil
}

func (l Loaded) stagesNode() (*yaml.Node, error) {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for i, stage := range l.Stages {
		item := &yaml.Node{Kind: yaml.MappingNode}
		for _, key := range Keys() {
			if short, ok := strings.CutPrefix(key.Name, stagesPrefix); ok {
				name := fmt.Sprintf("stages.%d.%s", i, short)
				if err := l.put(item, short, name, reflect.ValueOf(stage).FieldByIndex(key.index)); err != nil {
					return nil, err
				}
			}
		}
		list.Content = append(list.Content, item)
	}
	return list, nil
}

func (l Loaded) put(parent *yaml.Node, short, name string, value reflect.Value) error {
	node := &yaml.Node{}
	if err := node.Encode(plain(value)); err != nil {
		return fmt.Errorf("%s to yaml: %w", name, err)
	}
	if origin := l.Origins[name]; origin != "" && origin != "default" {
		node.LineComment = origin
	}
	parent.Content = append(parent.Content, textNode(short), node)
	return nil
}

func textNode(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// Difference is one key in which two configurations differ.
type Difference struct {
	Key   string
	Class Class
	A, B  string // as YAML; "absent" for a stage that one of them lacks
}

// Diff lists the keys in which a and b differ, in the order of the sections.
func Diff(a, b Config) []Difference {
	var out []Difference
	add := func(key Key, name string, x, y reflect.Value) {
		left, right := fmt.Sprint(plain(x)), fmt.Sprint(plain(y))
		if left != right {
			out = append(out, Difference{Key: name, Class: key.Class, A: left, B: right})
		}
	}
	stagesDone := false
	for _, key := range Keys() {
		if strings.HasPrefix(key.Name, stagesPrefix) {
			if !stagesDone {
				stagesDone = true
				out = append(out, diffStages(a.Stages, b.Stages)...)
			}
			continue
		}
		add(key, key.Name, reflect.ValueOf(a).FieldByIndex(key.index), reflect.ValueOf(b).FieldByIndex(key.index))
	}
	return out
}

func diffStages(a, b []Stage) []Difference {
	var out []Difference
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) {
			d := Difference{Key: fmt.Sprintf("stages.%d", i), Class: Identity, A: "absent", B: "absent"}
			if i < len(a) {
				d.A = a[i].Name
			} else {
				d.B = b[i].Name
			}
			out = append(out, d)
			continue
		}
		for _, key := range Keys() {
			short, ok := strings.CutPrefix(key.Name, stagesPrefix)
			if !ok {
				continue
			}
			x := fmt.Sprint(plain(reflect.ValueOf(a[i]).FieldByIndex(key.index)))
			y := fmt.Sprint(plain(reflect.ValueOf(b[i]).FieldByIndex(key.index)))
			if x != y {
				out = append(out, Difference{Key: fmt.Sprintf("stages.%s.%s", a[i].Name, short), Class: key.Class, A: x, B: y})
			}
		}
	}
	return out
}

// Value is one key of a configuration with its value as text.
type Value struct {
	Key   string
	Class Class
	Text  string
}

// Values lists every key of c, those of stages under stages.NAME.field.
func (c Config) Values() []Value {
	var out []Value
	root := reflect.ValueOf(c)
	for _, key := range Keys() {
		short, ofStage := strings.CutPrefix(key.Name, stagesPrefix)
		if !ofStage {
			out = append(out, Value{key.Name, key.Class, fmt.Sprint(plain(root.FieldByIndex(key.index)))})
			continue
		}
		for _, stage := range c.Stages {
			text := fmt.Sprint(plain(reflect.ValueOf(stage).FieldByIndex(key.index)))
			out = append(out, Value{fmt.Sprintf("stages.%s.%s", stage.Name, short), key.Class, text})
		}
	}
	return out
}
