package reward

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

func TestCheck(t *testing.T) {
	records := []rollout.Question{
		{ID: "1", Kind: rollout.SingleChoice, Text: "What? A. AMD B. Glaucoma", Gold: "B"},
		{ID: "2", Kind: rollout.SingleChoice, Text: "no options here", Gold: "A"},
		{ID: "3", Kind: rollout.Open, Text: "Diagnosis?", Gold: "AMD"},
		{ID: "4", Kind: rollout.Open, Text: "Diagnosis?", Gold: "AMD"},
	}
	predictions := []Prediction{
		{ID: "1", Text: "<think>x</think><answer>B</answer>"},
		{ID: "1", Text: "It is B"},
		{ID: "9", Text: "<think>x</think><answer>B</answer>"},
		{ID: "2", Text: "<think>x</think><answer>A</answer>"},
		{ID: "3", Text: "<think>x</think><answer>AMD</answer>", Finish: rollout.FinishAbort},
	}
	r, err := Check(context.Background(), mustNew(t, DefaultOptions()), records, predictions)
	if err != nil {
		t.Fatal(err)
	}
	if r.Scored != 3 || r.Missing != 1 || r.Correct != 2 || r.Lenient != 3 || r.LetterOnly != 1 || r.MeanTotal != 1 {
		t.Errorf("%+v, want 3 scored, 1 missing, 2 correct, 3 leniently, 1 letter only, mean 1", r)
	}
	if !reflect.DeepEqual(r.Unknown, []string{"9"}) || !reflect.DeepEqual(r.Unanswered, []string{"4"}) {
		t.Errorf("unknown %v, unanswered %v", r.Unknown, r.Unanswered)
	}
	want := map[string]int{"format: formatted": 2, "format: no_answer": 1, "format: aborted": 1,
		"answer: right": 2, "answer: no_answer": 1, "answer: aborted": 1}
	if !reflect.DeepEqual(r.Reasons, want) {
		t.Errorf("reasons %v, want %v", r.Reasons, want)
	}
	if len(r.Parts) != 2 || r.Parts[1] != (PartTotal{"answer", 2.0 / 3, 3, 1}) {
		t.Errorf("parts %+v, want answer 2/3 over 3 with 1 missing", r.Parts)
	}
	if r.Rows[2].ID != "2" || r.Rows[1].Lenient.Reason != CodeRight {
		t.Errorf("rows are out of order: %+v", r.Rows)
	}
}

func TestCheckRefuses(t *testing.T) {
	s := mustNew(t, DefaultOptions())
	twice := []rollout.Question{{ID: "1"}, {ID: "1"}}
	if _, err := Check(context.Background(), s, twice, nil); err == nil || !strings.Contains(err.Error(), `record 1: id "1"`) {
		t.Errorf("two records of one id: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Check(ctx, s, twice[:1], []Prediction{{ID: "1"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	if r, err := Check(context.Background(), s, nil, nil); err != nil || r.MeanTotal != 0 || len(r.Rows) != 0 {
		t.Errorf("nothing at all: %+v, %v", r, err)
	}
}
