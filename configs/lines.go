package configs

import (
	"fmt"
	"strings"

	"gopkg.in/yaml.v3"
)

// walk records the line of every key below node and reports the unknown,
// doubled and misplaced ones. viper forgets lines; this pass keeps them.
func walk(path string, node *yaml.Node, prefix string, lines map[string]int) []error {
	switch node.Kind {
	case yaml.DocumentNode:
		return walk(path, node.Content[0], prefix, lines)
	case yaml.MappingNode:
		return walkMapping(path, node, prefix, lines)
	case 0:
		return nil // an empty file
	}
	if prefix == "" {
		return []error{fmt.Errorf("%s:%d: want keys and values", path, node.Line)}
	}
	return []error{fmt.Errorf("%s:%d: %s is a section, want keys below it", path, node.Line, strings.TrimSuffix(prefix, "."))}
}

func walkMapping(path string, node *yaml.Node, prefix string, lines map[string]int) []error {
	var problems []error
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := prefix + key.Value
		place := fmt.Sprintf("%s:%d", path, key.Line)
		if first, double := lines[name]; double {
			problems = append(problems, fmt.Errorf("%s: %s is set twice, first at line %d", place, name, first))
		}
		lines[name] = key.Line
		known, ok := find(name)
		switch {
		case strings.Contains(key.Value, "."):
			problems = append(problems, fmt.Errorf("%s: %s has a dot: write a key below its section", place, name))
		case ok:
			known.keepText(value)
		case name == "stages":
			problems = append(problems, walkStages(path, value, lines)...)
		case isPrefix(name):
			problems = append(problems, walk(path, value, name+".", lines)...)
		default:
			problems = append(problems, unknownKey(place, name))
		}
	}
	return problems
}

func walkStages(path string, node *yaml.Node, lines map[string]int) []error {
	if node.Kind != yaml.SequenceNode {
		return []error{fmt.Errorf("%s:%d: stages is a list of stages", path, node.Line)}
	}
	var problems []error
	for i, item := range node.Content {
		if item.Kind != yaml.MappingNode {
			problems = append(problems, fmt.Errorf("%s:%d: a stage has keys and values", path, item.Line))
			continue
		}
		problems = append(problems, walkMapping(path, item, fmt.Sprintf("stages.%d.", i), lines)...)
	}
	return problems
}

// isPrefix says whether name is a section.
func isPrefix(name string) bool {
	for _, k := range keys() {
		if strings.HasPrefix(k.Name, name+".") {
			return true
		}
	}
	return false
}
