package reward

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

var finishes = map[string]rollout.Finish{"stop": rollout.FinishStop, "length": rollout.FinishLength, "abort": rollout.FinishAbort}

// TestResponseTable scores whole responses: their form, and the answer found in
// them strictly and leniently.
func TestResponseTable(t *testing.T) {
	data, err := os.ReadFile("testdata/responses.json")
	if err != nil {
		t.Fatal(err)
	}
	var fixture struct {
		Questions map[string]struct {
			Kind       rollout.Kind
			Text, Gold string
		}
		Responses []struct {
			Question, Text, Finish, Note string
			Format, Strict, Lenient      Code
		}
	}
	if err := json.Unmarshal(data, &fixture); err != nil {
		t.Fatal(err)
	}
	if len(fixture.Responses) < 50 {
		t.Fatalf("%d responses, want at least 50: was the fixture cut?", len(fixture.Responses))
	}
	scorer, err := New(DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range fixture.Responses {
		t.Run(fmt.Sprintf("%02d", i), func(t *testing.T) {
			finish, ok := finishes[r.Finish]
			q, known := fixture.Questions[r.Question]
			if !ok || !known {
				t.Fatalf("fixture: finish %q or question %q is unknown", r.Finish, r.Question)
			}
			question := rollout.Question{Kind: q.Kind, Text: q.Text, Gold: q.Gold}
			trace := rollout.Trace{Text: r.Text, Finish: finish}
			format, strict, lenient := Format(trace), Strict(question, trace), Lenient(question, trace)
			if format.Reason != r.Format || strict.Reason != r.Strict || lenient.Reason != r.Lenient {
				t.Errorf("%q (%s): format %s, strict %s, lenient %s; want %s, %s, %s; %s", r.Text, r.Finish,
					format.Reason, strict.Reason, lenient.Reason, r.Format, r.Strict, r.Lenient, r.Note)
			}
			score, err := scorer.Score(context.Background(), question, trace)
			if err != nil {
				t.Fatal(err)
			}
			want := 0.0
			if r.Format == CodeFormatted {
				want += 0.5
			}
			if r.Strict == CodeRight {
				want++
			}
			if score.Total != want || score.Correct != (r.Strict == CodeRight) || score.Missing != (finish == rollout.FinishAbort) {
				t.Errorf("%q: total %v (correct %v, missing %v), want %v", r.Text, score.Total, score.Correct, score.Missing, want)
			}
		})
	}
}
