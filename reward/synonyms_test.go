package reward

import (
	"strings"
	"testing"
)

func TestBuiltinSynonyms(t *testing.T) {
	table, err := parseSynonyms(synonymData)
	if err != nil {
		t.Fatal(err)
	}
	if table.version != SynonymVersion() || len(table.concepts) < 200 || len(table.short) < 50 {
		t.Errorf("version %d with %d names and %d abbreviations: was the table cut?", table.version, len(table.concepts), len(table.short))
	}
	for from, to := range table.spelling {
		if Fold(from) != from || Fold(to) != to || from == to {
			t.Errorf("spelling %q -> %q is not two folded words", from, to)
		}
	}
	for name, main := range table.concepts {
		// What the table says must be what canonical finds, else an entry is dead.
		if got := table.canonical(name); len(got.concepts) != 1 || got.concepts[0] != main {
			t.Errorf("%q is found as %v, want %q", name, got.concepts, main)
		}
	}
	for short, main := range table.short {
		if got := table.canonical(strings.ToUpper(short)); got.concepts[0] != main {
			t.Errorf("%q is found as %v, want %q", short, got.concepts, main)
		}
	}
}

func TestSameName(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"AMD", "age-related macular degeneration", true},
		{"wet AMD", "dry AMD", false},
		{"RD", "retinal detachment", true},
		{"RD", "retinal dystrophy", true},
		{"retinal dystrophy", "retinal detachment", false},
		{"RP", "RD", false},
		{"unheard-of disease", "Unheard of Disease.", true},
		{"CRVO", "BRVO", false},
		{"PDR", "NPDR", false},
	} {
		if same, meanings := SameName(c.a, c.b); same != c.want {
			t.Errorf("SameName(%q, %q) = %v (%v), want %v", c.a, c.b, same, meanings, c.want)
		}
	}
}

func TestSynonymTableRefused(t *testing.T) {
	for name, c := range map[string]struct{ table, want string }{
		"no JSON":          {`{`, "synonym table"},
		"no version":       {`{}`, "version is 0"},
		"two meanings":     {`{"version":1,"concepts":[{"name":"a b","same":["x"]},{"name":"c d","same":["X."]}]}`, "means both"},
		"short of two":     {`{"version":1,"concepts":[{"name":"a b","abbreviations":["AB"]},{"name":"c d","abbreviations":["ab"]}]}`, "is taken by"},
		"short is a text":  {`{"version":1,"concepts":[{"name":"a b","abbreviations":["CD EF"]}]}`, "no word"},
		"ambiguous or not": {`{"version":1,"concepts":[{"name":"a b","abbreviations":["AB"]}],"ambiguous":{"AB":["a b"]}}`, "both ambiguous"},
		"empty name":       {`{"version":1,"concepts":[{"name":"..."}]}`, "means both"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseSynonyms([]byte(c.table)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
}
