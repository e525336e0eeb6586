package configs

import (
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/uadt"
)

// Class says what a difference in a key means for a run directory.
type Class string

// The classes of keys.
const (
	Identity  Class = "identity"  // a difference refuses to resume
	Placement Class = "placement" // addresses, ranks, paths: may change, is recorded
	Horizon   Class = "horizon"   // how far a run goes: may be extended
)

// Key describes one key of the configuration.
type Key struct {
	Name   string // full name, such as rollout.group_size; stages.* for the fields of a stage
	Class  Class
	Type   string // what a value looks like: text, whole number, number, true or false, duration, list, schedule
	Unit   string // empty for a pure number
	Range  string // empty where any value of the type will do
	Help   string
	Source string // where the meaning or the default comes from, when it is not ours alone
	index  []int  // field path from Config, or from Stage for stages.*
}

// stagesPrefix is that of the keys of a list element.
const stagesPrefix = "stages.*."

// Keys lists every key in the order of the sections.
func Keys() []Key { return slices.Clone(keys()) }

// keys is read from the tags once: a load looks for a key many times.
var keys = sync.OnceValue(func() []Key { return collect(reflect.TypeFor[Config](), "", nil) })

func collect(t reflect.Type, prefix string, index []int) []Key {
	var found []Key
	for i := range t.NumField() {
		field := t.Field(i)
		name := prefix + field.Tag.Get("key")
		path := append(append([]int(nil), index...), i)
		switch {
		case field.Type == reflect.TypeFor[[]Stage]():
			found = append(found, collect(reflect.TypeFor[Stage](), stagesPrefix, nil)...)
		case isSection(field.Type):
			found = append(found, collect(field.Type, name+".", path)...)
		default:
			found = append(found, keyOf(field, name, path))
		}
	}
	return found
}

func keyOf(field reflect.StructField, name string, path []int) Key {
	class := Class(field.Tag.Get("class"))
	if class == "" {
		class = Identity
	}
	return Key{
		Name: name, Class: class, Type: typeName(field.Type), Unit: field.Tag.Get("unit"),
		Range: field.Tag.Get("range"), Help: field.Tag.Get("help"), Source: field.Tag.Get("source"), index: path,
	}
}

// isSection tells a group of keys from a value that happens to be a struct.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t.PkgPath() == reflect.TypeFor[Config]().PkgPath()
}

func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[uadt.Schedule]():
		return "number or schedule"
	case reflect.TypeFor[uadt.Gamma]():
		return "number or half_life"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return typeList
	}
	return typeText
}

// find returns the key called name, where the middle of stages.NAME.field may
// be any stage.
func find(name string) (Key, bool) {
	if parts := strings.SplitN(name, ".", 3); len(parts) == 3 && parts[0] == "stages" {
		name = stagesPrefix + parts[2]
	}
	for _, k := range keys() {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}

// nearest returns the known key closest to name, or "" when none is close.
func nearest(name string) string {
	best, bestDistance := "", len(name)/2+1
	try := func(candidate string) {
		if d := distance(name, candidate); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	for _, k := range keys() {
		try(k.Name)
		if section, _, nested := strings.Cut(k.Name, "."); nested {
			try(section)
		}
	}
	return best
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			previous, row[j+1] = row[j+1], min(previous+cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
