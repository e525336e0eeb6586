package reward

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

var right = rollout.Trace{Text: "<think>x</think><answer>B</answer>"}
var question = rollout.Question{ID: "q1", Kind: rollout.SingleChoice, Text: "What? A. AMD B. Glaucoma", Gold: "B"}

func mustNew(t *testing.T, options Options) Scorer {
	t.Helper()
	s, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustScore(t *testing.T, s Scorer, q rollout.Question, trace rollout.Trace) Score {
	t.Helper()
	score, err := s.Score(context.Background(), q, trace)
	if err != nil {
		t.Fatal(err)
	}
	return score
}

func TestWeights(t *testing.T) {
	o := DefaultOptions()
	o.FormatWeight, o.AnswerWeight = 0.25, 2
	s := mustNew(t, o)
	if got := mustScore(t, s, question, right).Total; got != 2.25 {
		t.Errorf("total %v, want 2.25", got)
	}
	noFormat := rollout.Trace{Text: "<answer>B</answer>"}
	score := mustScore(t, s, question, noFormat)
	if score.Total != 2 || !score.Correct || score.Value(FormatPart) != 0 || score.Value(AnswerPart) != 1 {
		t.Errorf("right answer in the wrong form: %+v, want total 2 and correct", score)
	}
	onlyFormat := rollout.Trace{Text: "<think>x</think><answer>A</answer>"}
	if score := mustScore(t, s, question, onlyFormat); score.Total != 0.25 || score.Correct {
		t.Errorf("wrong answer in the right form: %+v, want total 0.25", score)
	}
}

func TestMultiModes(t *testing.T) {
	q := rollout.Question{Kind: rollout.MultipleChoice, Text: "Which? A. a1 B. b1 C. c1", Gold: "A,C"}
	part := rollout.Trace{Text: "<think>x</think><answer>A</answer>"}
	o := DefaultOptions()
	score := mustScore(t, mustNew(t, o), q, part)
	if score.Value(AnswerPart) != 0 || math.Abs(score.Answer.F1-2.0/3) > 1e-15 || score.Correct {
		t.Errorf("exact: %+v, want answer 0 with F1 2/3 reported", score)
	}
	o.Multi = MultiF1
	score = mustScore(t, mustNew(t, o), q, part)
	if math.Abs(score.Value(AnswerPart)-2.0/3) > 1e-15 || score.Correct {
		t.Errorf("f1: %+v, want answer 2/3, not correct", score)
	}
	full := rollout.Trace{Text: "<think>x</think><answer>C,A</answer>"}
	if score = mustScore(t, mustNew(t, o), q, full); !score.Correct {
		t.Errorf("f1 of the whole set: %+v, want correct", score)
	}
}

func TestOpenModes(t *testing.T) {
	q := rollout.Question{Kind: rollout.Open, Text: "Diagnosis?", Gold: "central retinal vein occlusion"}
	wrong := rollout.Trace{Text: "<think>x</think><answer>branch retinal vein occlusion</answer>"}
	negated := rollout.Trace{Text: "<think>x</think><answer>not central retinal vein occlusion</answer>"}
	o := DefaultOptions()
	if v := mustScore(t, mustNew(t, o), q, wrong).Value(AnswerPart); v != 0 {
		t.Errorf("match pays %v for a wrong diagnosis", v)
	}
	o.Open = OpenF1
	if v := mustScore(t, mustNew(t, o), q, wrong).Value(AnswerPart); v != 0.75 {
		t.Errorf("f1 is %v, want 0.75", v)
	}
	if v := mustScore(t, mustNew(t, o), q, negated).Value(AnswerPart); v != 0 {
		t.Errorf("f1 pays %v for a negated answer", v)
	}
	calls := 0
	o.Open = OpenJudge
	o.Judge = func(context.Context, rollout.Question, rollout.Trace) (Part, error) {
		calls++
		return Part{Value: 1, Reason: CodeScored}, nil
	}
	if s := mustScore(t, mustNew(t, o), q, wrong); !s.Correct || s.Total != 1.5 || s.Answer.Exact {
		t.Errorf("judge says right: %+v", s)
	}
	if s := mustScore(t, mustNew(t, o), q, rollout.Trace{Text: "no blocks"}); s.Correct || s.Missing || calls != 1 {
		t.Errorf("without an answer the judge was asked (%d calls): %+v", calls, s)
	}
	o.Judge = func(context.Context, rollout.Question, rollout.Trace) (Part, error) {
		return Part{Value: 1}, errors.New("judge is away")
	}
	s := mustScore(t, mustNew(t, o), q, wrong)
	if p, _ := s.Part(AnswerPart); !s.Missing || s.Correct || s.Total != 0 || p.Reason != CodePartFailed || p.Value != 0 {
		t.Errorf("failed judge: %+v, want a missing score", s)
	}
}

func TestExtraParts(t *testing.T) {
	boom := errors.New("boom")
	o := DefaultOptions()
	o.Timeout = time.Nanosecond
	o.Extra = []Extra{
		{"bonus", -2, func(context.Context, rollout.Question, rollout.Trace) (Part, error) {
			return Part{Value: 0.25, Reason: CodeScored}, nil
		}},
		{"watched", 0, func(context.Context, rollout.Question, rollout.Trace) (Part, error) { return Part{}, boom }},
		{"slow", 0, func(ctx context.Context, _ rollout.Question, _ rollout.Trace) (Part, error) {
			<-ctx.Done()
			return Part{}, ctx.Err()
		}},
		{"nan", 0, func(context.Context, rollout.Question, rollout.Trace) (Part, error) {
			return Part{Value: math.NaN()}, nil
		}},
	}
	s := mustScore(t, mustNew(t, o), question, right)
	if s.Missing || s.Total != 1 {
		t.Errorf("total %v, missing %v; want 1.5 - 2*0.25, failures of weight 0 only recorded", s.Total, s.Missing)
	}
	for name, want := range map[string]Code{"bonus": CodeScored, "watched": CodePartFailed, "slow": CodeTimeout, "nan": CodePartFailed} {
		if p, ok := s.Part(name); !ok || p.Reason != want || p.Missing != (want != CodeScored) {
			t.Errorf("part %s: %+v, want %s", name, p, want)
		}
	}
	if _, ok := s.Part("nothing"); ok {
		t.Error("a part that is not there was found")
	}
	o.Extra[1].Weight = 1e-9
	if s := mustScore(t, mustNew(t, o), question, right); !s.Missing || s.Total != 0 {
		t.Errorf("a failed part with a weight: %+v, want missing", s)
	}
}

func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	o := DefaultOptions()
	o.Extra = []Extra{{"x", 1, func(context.Context, rollout.Question, rollout.Trace) (Part, error) {
		cancel()
		return Part{}, errors.New("too late")
	}}}
	s := mustNew(t, o)
	for range 2 { // ends within a part, then before the first
		if _, err := s.Score(ctx, question, right); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	if err := DefaultOptions().Validate(); err != nil {
		t.Fatalf("the defaults are refused: %v", err)
	}
	o := Options{
		FormatWeight: -1, AnswerWeight: math.NaN(), Multi: "some", Open: "judge",
		Extra: []Extra{{"format", 1, nil}, {"", math.Inf(1), nil}},
	}
	_, err := New(o)
	if err == nil {
		t.Fatal("nonsense was accepted")
	}
	for _, want := range []string{"reward.format is -1", "reward.answer is NaN", `reward.multi is "some"`, "no judge is configured",
		"timeout is 0s", `called "format"`, `called ""`, "has no function", "+Inf"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not mention %q", err, want)
		}
	}
	if err := (Options{Multi: MultiExact, Open: "x", Timeout: 1}).Validate(); err == nil || !strings.Contains(err.Error(), `reward.open is "x"`) {
		t.Errorf("open mode x: %v", err)
	}
}

func TestNoGoldIsMissing(t *testing.T) {
	q := question
	q.Gold = ""
	if s := mustScore(t, mustNew(t, DefaultOptions()), q, right); !s.Missing || s.Answer.Reason != CodeNoGold {
		t.Errorf("no gold: %+v, want missing", s)
	}
}

func TestLengthParts(t *testing.T) {
	length, err := Length(10)
	if err != nil {
		t.Fatal(err)
	}
	overlong, err := Overlong(10, 4)
	if err != nil {
		t.Fatal(err)
	}
	for tokens, want := range map[int][2]float64{0: {0, 0}, 5: {0.5, 0}, 6: {0.6, 0}, 7: {0.7, -0.25}, 8: {0.8, -0.5}, 10: {1, -1}, 30: {1, -1}} {
		trace := rollout.Trace{Tokens: make([]int32, tokens)}
		for i, f := range []PartFunc{length, overlong} {
			p, err := f(context.Background(), question, trace)
			if err != nil || p.Value != want[i] {
				t.Errorf("%d tokens, part %d: %v (%v), want %v", tokens, i, p.Value, err, want[i])
			}
		}
	}
	if _, err := Length(0); err == nil {
		t.Error("length of 0 tokens was accepted")
	}
	for _, bad := range [][2]int{{10, 0}, {10, 11}, {0, -1}} {
		if _, err := Overlong(bad[0], bad[1]); err == nil {
			t.Errorf("overlong %v was accepted", bad)
		}
	}
}

// TestOrderOfLettersNeverMatters: a set answer is worth the same in any order
// and with any separator.
func TestOrderOfLettersNeverMatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := []string{"A", "B", "C", "D", "E", "F"}
		gold := rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, 6, rapid.ID).Draw(t, "gold")
		answer := rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, 6, rapid.ID).Draw(t, "answer")
		separator := rapid.SampledFrom([]string{",", ", ", ";", " ", "、", " and ", ""}).Draw(t, "separator")
		q := rollout.Question{Kind: rollout.MultipleChoice, Text: "Which? A. a1 B. b1 C. c1 D. d1 E. e1 F. f1", Gold: strings.Join(gold, ",")}
		got := Compare(q, strings.Join(answer, separator))
		common := 0
		for _, a := range answer {
			for _, g := range gold {
				if a == g {
					common++
				}
			}
		}
		want := 2 * float64(common) / float64(len(gold)+len(answer))
		if math.Abs(got.F1-want) > 1e-12 || got.Exact != (want == 1) {
			t.Fatalf("gold %v, answer %v with %q: %+v, want F1 %v", gold, answer, separator, got, want)
		}
	})
}
