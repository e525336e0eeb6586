package phantom

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// What a caption concludes follows from its own scan and is what its
// instruction asks for.
func TestCaptionsConcludeWhatIsAsked(t *testing.T) {
	asked := map[string]int{}
	for i := range 800 {
		c := Options{Seed: 4}.CaptionPair(i)
		scan, conclusion, concludes := strings.Cut(c.Text, ": ")
		words := parseScan(t, scan)
		count := map[string]int{}
		for _, w := range words {
			count[w]++
		}
		var want string
		at := strings.LastIndex(c.Instruction, "Describe")
		if at < 0 {
			t.Fatalf("instruction %q", c.Instruction)
		}
		instruction := c.Instruction[at:]
		asked[instruction]++
		switch instruction {
		case describe:
		case withCount:
			want = countPhrase(4 - count["clear"])
		case withList:
			var names []string
			for _, l := range lesions {
				if count[l.String()] > 0 {
					names = append(names, l.String())
				}
			}
			want = strings.Join(names, ", ")
		case withMain:
			name, ok := strings.CutPrefix(conclusion, "mostly ")
			for _, l := range lesions {
				if l.String() != name && count[l.String()] >= count[name] {
					ok = false
				}
			}
			if !ok {
				t.Errorf("%q concludes %q", scan, conclusion)
			}
			want = conclusion
		case withGrade:
			want = evidence(c.Scene) + solve(Item{}, count, strings.Contains(scan, "disc cupped"))
		default:
			t.Fatalf("unknown instruction %q", instruction)
		}
		if concludes != (want != "") || conclusion != want {
			t.Errorf("%s\n%s\nconcludes %q, want %q", c.Instruction, c.Text, conclusion, want)
		}
	}
	for _, instruction := range []string{describe, withCount, withMain, withList, withGrade} {
		if asked[instruction] < 40 {
			t.Errorf("%q is asked %d times in 800", instruction, asked[instruction])
		}
	}
}

// Settings differ in length and carry nothing of the scene but a history that
// never misleads.
func TestSettingsAndHistories(t *testing.T) {
	hints := map[string][]string{
		"high sugar": {Severe, Moderate, Mild}, "high pressure": {Glaucoma}, "smoker": {Degeneration},
	}
	rapid.Check(t, func(t *rapid.T) {
		r := seeded(t)
		disease := rapid.SampledFrom(diagnoses[:]).Draw(t, "disease")
		text := history(r, disease)
		for hint, diseases := range hints {
			if !strings.Contains(text, hint) {
				continue
			}
			fits := false
			for _, d := range diseases {
				fits = fits || d == disease
			}
			if !fits {
				t.Errorf("%q for %s", text, disease)
			}
		}
		for _, d := range diagnoses {
			if strings.Contains(text, d) {
				t.Errorf("%q names a disease", text)
			}
		}
	})
	lengths := map[int]bool{}
	for i := range 100 {
		lengths[len(Options{}.CaptionPair(i).Instruction)] = true
	}
	if len(lengths) < 10 {
		t.Errorf("instructions have %d different lengths", len(lengths))
	}
}

// Stage 1 must not teach a glance: no caption concludes without a whole scan.
func TestNoCaptionConcludesAtAGlance(t *testing.T) {
	for i := range 300 {
		if c := (Options{Seed: 8}).CaptionPair(i); strings.Contains(c.Text, "glance") || strings.Count(c.Text, ", ") < scanParts-1 {
			t.Errorf("caption %q", c.Text)
		}
	}
}
