package reward

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// answerFixture is testdata/answers.json: answer blocks and what they are worth.
type answerFixture struct {
	Questions map[string]string `json:"questions"`
	Cases     []answerCase      `json:"cases"`
}

type answerCase struct {
	Kind      rollout.Kind `json:"kind"`
	Question  string       `json:"question"`
	Gold      string       `json:"gold"`
	Block     string       `json:"block"`
	Reason    Code         `json:"reason"`
	Exact     bool         `json:"exact"`
	F1        *float64     `json:"f1"`        // nil: anything below 1
	Extracted *string      `json:"extracted"` // nil: not looked at
	Note      string       `json:"note"`
}

func readFixture(t testing.TB) answerFixture {
	t.Helper()
	data, err := os.ReadFile("testdata/answers.json")
	if err != nil {
		t.Fatal(err)
	}
	var f answerFixture
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f answerFixture) question(c answerCase) rollout.Question {
	return rollout.Question{ID: "q", Kind: c.Kind, Text: f.Questions[c.Question], Gold: c.Gold}
}

func TestAnswerTable(t *testing.T) {
	fixture := readFixture(t)
	if len(fixture.Cases) < 250 {
		t.Fatalf("%d cases, want at least 250: was the fixture cut?", len(fixture.Cases))
	}
	for i, c := range fixture.Cases {
		t.Run(fmt.Sprintf("%03d_%s", i, c.Kind), func(t *testing.T) {
			got := Compare(fixture.question(c), c.Block)
			if got.Reason != c.Reason || got.Exact != c.Exact {
				t.Errorf("%s, gold %q, answer %.60q: %s (exact %v, extracted %q), want %s (exact %v); %s",
					c.Question, c.Gold, c.Block, got.Reason, got.Exact, got.Extracted, c.Reason, c.Exact, c.Note)
			}
			if c.F1 != nil && math.Abs(got.F1-*c.F1) > 1e-12 {
				t.Errorf("gold %q, answer %.60q: F1 %v, want %v", c.Gold, c.Block, got.F1, *c.F1)
			}
			if c.F1 == nil && got.F1 >= 1 {
				t.Errorf("gold %q, answer %.60q: F1 %v, want below 1", c.Gold, c.Block, got.F1)
			}
			if c.Extracted != nil && got.Extracted != *c.Extracted {
				t.Errorf("gold %q, answer %.60q: extracted %q, want %q", c.Gold, c.Block, got.Extracted, *c.Extracted)
			}
		})
	}
}
