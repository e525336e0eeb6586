package experiments

import (
	"errors"
	"fmt"
	"strings"
)

// Class says what a difference in a setting means for a run directory.
type Class string

// The classes.
const (
	ClassIdentity  Class = "identity"  // a difference refuses to resume
	ClassPlacement Class = "placement" // may change, and is recorded
	ClassHorizon   Class = "horizon"   // how far the run goes: may change, and is recorded
)

// Setting is one thing that a run was started with: a key of the configuration,
// or a digest of what it runs on.
type Setting struct {
	Key   string `json:"key"`
	Class Class  `json:"class"`
	Value string `json:"value"`
}

// Difference is one setting in which a run directory and a start disagree.
type Difference struct {
	Key      string `json:"key"`
	Class    Class  `json:"class"`
	Recorded string `json:"recorded"` // in the run directory
	Given    string `json:"given"`    // by this start
}

// Absent stands in a Difference for a setting that one side lacks.
const Absent = "(absent)"

// Compare lists the settings that differ, in the order of given, those that
// only the record has last. The class is that of given, where it has the key.
func Compare(recorded, given []Setting) []Difference {
	old := make(map[string]Setting, len(recorded))
	for _, s := range recorded {
		old[s.Key] = s
	}
	var out []Difference
	for _, s := range given {
		before, ok := old[s.Key]
		delete(old, s.Key)
		if !ok {
			before.Value = Absent
		}
		if before.Value != s.Value {
			out = append(out, Difference{Key: s.Key, Class: s.Class, Recorded: before.Value, Given: s.Value})
		}
	}
	for _, s := range recorded {
		if _, left := old[s.Key]; left {
			out = append(out, Difference{Key: s.Key, Class: s.Class, Recorded: s.Value, Given: Absent})
		}
	}
	return out
}

// MismatchError says that a run directory belongs to a run of another identity.
// Nothing in it was touched.
type MismatchError struct {
	Dir         string
	Differences []Difference // of class identity
}

// Error implements error, with every differing key.
func (e *MismatchError) Error() string {
	lines := make([]string, len(e.Differences))
	for i, d := range e.Differences {
		lines[i] = fmt.Sprintf("%s is %s here, %s in this start", d.Key, d.Recorded, d.Given)
	}
	return fmt.Sprintf("run directory %s is of another run: %s", e.Dir, strings.Join(lines, "; "))
}

// ofClass keeps the differences of one class.
func ofClass(all []Difference, class Class) []Difference {
	var out []Difference
	for _, d := range all {
		if d.Class == class {
			out = append(out, d)
		}
	}
	return out
}

// checkSettings refuses unknown classes and keys that occur twice.
func checkSettings(settings []Setting) error {
	var problems []error
	seen := map[string]bool{}
	for _, s := range settings {
		if s.Class != ClassIdentity && s.Class != ClassPlacement && s.Class != ClassHorizon {
			problems = append(problems, fmt.Errorf("setting %s: class %q, want identity, placement or horizon", s.Key, string(s.Class)))
		}
		if seen[s.Key] {
			problems = append(problems, fmt.Errorf("setting %s is given twice", s.Key))
		}
		seen[s.Key] = true
	}
	return errors.Join(problems...)
}
