package reward

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
)

//go:embed synonyms.json
var synonymData []byte

// SynonymVersion returns the version of the compiled-in synonym table: two runs
// whose versions differ do not score open answers alike.
func SynonymVersion() int { return builtinSynonyms().version }

// builtinSynonyms parses the embedded table once; a test parses it too, so a
// broken table never ships.
var builtinSynonyms = sync.OnceValue(func() *synonymTable {
	table, err := parseSynonyms(synonymData)
	if err != nil {
		// Unreachable with a table that passed the tests. An empty table still
		// scores by equality.
		return &synonymTable{}
	}
	return table
})

// synonymTable knows which names mean the same.
type synonymTable struct {
	version   int
	concepts  map[string]string   // folded name -> folded main name
	short     map[string]string   // unambiguous abbreviation -> folded expansion
	ambiguous map[string][]string // abbreviation -> folded main names it may mean
	spelling  map[string]string   // word -> the spelling that we compare with
}

// parseSynonyms reads a table and refuses one in which a name means two things.
func parseSynonyms(data []byte) (*synonymTable, error) {
	var file struct {
		Version  int `json:"version"`
		Concepts []struct {
			Name          string   `json:"name"`
			Same          []string `json:"same"`
			Abbreviations []string `json:"abbreviations"`
		} `json:"concepts"`
		Ambiguous map[string][]string `json:"ambiguous"`
		Spelling  map[string]string   `json:"spelling"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("synonym table: %w", err)
	}
	if file.Version < 1 {
		return nil, fmt.Errorf("synonym table: version is %d, want at least 1", file.Version)
	}
	t := &synonymTable{
		version: file.Version, concepts: map[string]string{}, short: map[string]string{},
		ambiguous: map[string][]string{}, spelling: file.Spelling,
	}
	for _, c := range file.Concepts {
		main := t.spell(Fold(c.Name))
		for _, same := range append([]string{c.Name}, c.Same...) {
			key := t.spell(Fold(same))
			if other, taken := t.concepts[key]; taken && other != main || key == "" {
				return nil, fmt.Errorf("synonym table: %q means both %q and %q", same, other, main)
			}
			t.concepts[key] = main
		}
		for _, short := range c.Abbreviations {
			key := Fold(short)
			if other, taken := t.short[key]; taken || key == "" || strings.Contains(key, " ") {
				return nil, fmt.Errorf("synonym table: abbreviation %q of %q is taken by %q or is no word", short, main, other)
			}
			t.short[key] = main
		}
	}
	for short, names := range file.Ambiguous {
		for _, n := range names {
			key := t.spell(Fold(n))
			if known, ok := t.concepts[key]; ok {
				key = known
			}
			t.ambiguous[Fold(short)] = append(t.ambiguous[Fold(short)], key)
		}
		if _, taken := t.short[Fold(short)]; taken {
			return nil, fmt.Errorf("synonym table: %q is both ambiguous and not", short)
		}
	}
	return t, nil
}

// spell replaces each word of folded text by its common spelling.
func (t *synonymTable) spell(folded string) string {
	words := strings.Fields(folded)
	for i, w := range words {
		if common, ok := t.spelling[w]; ok {
			words[i] = common
		}
	}
	return strings.Join(words, " ")
}

// canonical brings a diagnosis into comparable form. A parenthetical that means
// the same as what stands before it is dropped: "wet AMD (nAMD)".
func (t *synonymTable) canonical(text string) name {
	text = Normalise(text)
	if before, inside, ok := splitParenthetical(text); ok {
		outer, inner := t.plain(before), t.plain(inside)
		if outer.equal(inner) {
			return outer
		}
	}
	return t.plain(text)
}

func (t *synonymTable) plain(text string) name {
	folded := Fold(text)
	if meanings, ok := t.ambiguous[folded]; ok {
		return name{key: folded, concepts: meanings}
	}
	n := name{}
	words := strings.Fields(folded)
	for i, w := range words {
		if long, ok := t.short[w]; ok {
			words[i] = long
		} else if _, ok := t.ambiguous[w]; ok {
			n.ambiguous = true
		}
	}
	n.key = t.spell(strings.Join(words, " "))
	n.concepts = []string{n.key}
	if main, ok := t.concepts[n.key]; ok {
		n.concepts[0] = main
	}
	return n
}

// SameName says whether two names mean the same by the compiled-in table, and
// lists the names it knows for each, for people.
func SameName(a, b string) (same bool, meanings []string) {
	x, y := builtinSynonyms().canonical(a), builtinSynonyms().canonical(b)
	meanings = slices.Concat(x.concepts, y.concepts)
	slices.Sort(meanings)
	return x.equal(y), slices.Compact(meanings)
}
