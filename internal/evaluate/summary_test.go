package evaluate

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

func wrap(answer string) string { return "<think>x</think><answer>" + answer + "</answer>" }

func imageOf(digest string) []rollout.Message {
	return []rollout.Message{{Role: "user", Parts: []rollout.Part{{Image: &rollout.Image{Digest: digest}}}}}
}

// result assesses responses to a question of a kind, with its own image.
func result(id string, q rollout.Question, responses ...string) Result {
	q.ID = id
	if q.Messages == nil {
		q.Messages = imageOf(id)
	}
	r := Result{Dataset: "set", Question: q}
	for _, text := range responses {
		r.Outcomes = append(r.Outcomes, Assess(q, rollout.Trace{Text: text}))
	}
	return r
}

var (
	single   = rollout.Question{Kind: rollout.SingleChoice, Text: "What? A. AMD B. Glaucoma", Gold: "B", Modality: "CFP", Level: rollout.Basic}
	multiple = rollout.Question{Kind: rollout.MultipleChoice, Text: "Which? A. a1 B. b1 C. c1", Gold: "A,C", Modality: "OCT", Level: rollout.Basic}
	open     = rollout.Question{Kind: rollout.Open, Text: "Diagnosis?", Gold: "central retinal vein occlusion", Level: rollout.Complex}
)

func TestSummarise(t *testing.T) {
	unanswered := result("6", single)
	noGold := single
	noGold.Gold = "?"
	results := []Result{
		result("1", single, wrap("B")),
		result("2", single, "I think B"),
		result("3", multiple, wrap("A")),
		result("4", open, wrap("branch retinal vein occlusion")),
		result("5", open, wrap("CRVO")),
		unanswered,
		result("7", noGold, wrap("B")),
	}
	verdict := 0.5
	results[3].Outcomes[0].Judge = &verdict
	s := Summarise(results, Options{Greedy: true})
	if s.Records != 7 || s.Unanswered != 1 || s.NoGold != 1 || s.Overall.Records != 5 || s.Overall.Responses != 5 || s.Overall.Clusters != 5 {
		t.Errorf("counts: %+v", s)
	}
	c := s.Overall
	for name, got := range map[string][2]float64{
		"strict":       {c.Strict.Value, 2.0 / 5},
		"lenient":      {c.Lenient.Value, 3.0 / 5},
		"formatted":    {c.Formatted.Value, 4.0 / 5},
		"given format": {c.GivenFormat.Value, 2.0 / 4},
		"letter":       {c.Letter.Value, 1.0 / 2},
		"set":          {c.Set.Value, 0},
		"set f1":       {c.SetF1.Value, 2.0 / 3},
		"match":        {c.Match.Value, 1.0 / 2},
		"token f1":     {c.TokenF1.Value, (0.75 + 1) / 2},
		"judge":        {c.Judge.Value, 0.5},
		"majority":     {c.Majority, 1}, // each type has one gold answer here
		"macro":        {s.MacroStrict, (0.5 + 0 + 0.5) / 3},
		"macro len.":   {s.MacroLenient, (1 + 0 + 0.5) / 3},
	} {
		near(t, name, got[0], got[1], 1e-12)
	}
	if c.Strict.Method != Wilson || c.TokenF1.Method != Bootstrap || c.Judge.N != 1 || len(c.Passes) != 0 {
		t.Errorf("methods %s, %s; judge over %d; passes %v", c.Strict.Method, c.TokenF1.Method, c.Judge.N, c.Passes)
	}
	want := map[reward.Code]int{reward.CodeRight: 2, reward.CodeNoAnswer: 1, reward.CodePartial: 2}
	if !reflect.DeepEqual(s.Reasons, want) {
		t.Errorf("reasons %v, want %v", s.Reasons, want)
	}
	var rows []string
	for _, g := range s.Groups {
		rows = append(rows, fmt.Sprintf("%s=%s:%d", g.By, g.Name, g.Cell.Records))
	}
	if got := strings.Join(rows, " "); got != "dataset=set:5 modality=:2 modality=CFP:2 modality=OCT:1 type=multiple:1 type=open:2 type=single:2 level=basic:3 level=complex:2" {
		t.Errorf("groups %s", got)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Errorf("the summary is no JSON: %v", err)
	}
}

func TestSeveralResponses(t *testing.T) {
	results := []Result{
		result("1", single, wrap("B"), wrap("A"), "B", wrap("A")),
		result("2", single, wrap("A"), wrap("A"), wrap("A"), wrap("A")),
	}
	s := Summarise(results, Options{Greedy: true})
	near(t, "strict", s.Overall.Strict.Value, 0.125, 1e-12)
	near(t, "given format", s.Overall.GivenFormat.Value, (1.0/3+0)/2, 1e-12)
	if s.Overall.Strict.Method != Bootstrap {
		t.Errorf("interval by %s though there are four responses a record", s.Overall.Strict.Method)
	}
	var got []string
	for _, p := range s.Overall.Passes {
		got = append(got, fmt.Sprintf("%d:%.3f", p.K, p.Value))
	}
	if fmt.Sprint(got) != "[1:0.125 2:0.250 4:0.500]" {
		t.Errorf("pass@k %v", got)
	}
}

func TestClustersOfResults(t *testing.T) {
	shared := single
	shared.Messages = imageOf("same")
	s := Summarise([]Result{result("1", shared, wrap("B")), result("2", shared, wrap("B")), result("3", single, wrap("A"))}, Options{Greedy: true})
	if s.Overall.Clusters != 2 || s.Overall.Strict.Method != Bootstrap {
		t.Errorf("two questions about one image: %d clusters, %s", s.Overall.Clusters, s.Overall.Strict.Method)
	}
	patient := []Result{result("1", single, wrap("B")), result("2", single, wrap("B"))}
	patient[0].Cluster, patient[1].Cluster = "patient", "patient"
	if s := Summarise(patient, Options{}); s.Overall.Clusters != 1 {
		t.Errorf("one patient: %d clusters", s.Overall.Clusters)
	}
	bare := single
	bare.Messages = []rollout.Message{}
	if s := Summarise([]Result{result("1", bare, wrap("B")), result("2", bare, wrap("B"))}, Options{}); s.Overall.Clusters != 2 {
		t.Errorf("without images: %d clusters", s.Overall.Clusters)
	}
}

func TestNothing(t *testing.T) {
	for name, results := range map[string][]Result{"no records": nil, "none answered": {result("1", single)}} {
		s := Summarise(results, Options{})
		if s.Overall.Strict.N != 0 || s.MacroStrict != 0 || len(s.Groups) != 0 {
			t.Errorf("%s: %+v", name, s)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// exam is a balanced set of questions of every type.
func exam() []rollout.Question {
	var questions []rollout.Question
	diagnoses := []string{"AMD", "glaucoma", "diabetic retinopathy", "retinal detachment"}
	for i := range 48 {
		letter := string(rune('A' + i/4%4))
		switch i % 4 {
		case 0:
			questions = append(questions, rollout.Question{Kind: rollout.SingleChoice, Text: "What? A. AMD B. Glaucoma C. Cataract D. Normal", Gold: letter})
		case 1:
			questions = append(questions, rollout.Question{Kind: rollout.TrueFalse, Text: "There is edema. A. True B. False", Gold: string(rune('A' + i/4%2))})
		case 2:
			questions = append(questions, rollout.Question{Kind: rollout.MultipleChoice, Text: "Which? A. a1 B. b1 C. c1 D. d1", Gold: []string{"A,B", "B,C", "C,D", "A,D"}[i/4%4]})
		default:
			questions = append(questions, rollout.Question{Kind: rollout.Open, Text: "Diagnosis?", Gold: diagnoses[i/4%4]})
		}
	}
	return questions
}

// TestAdversarialAnswers: answers that know nothing earn no more than always
// giving the commonest answer, and answers that hedge earn nothing, however
// they are dressed. Leniency may find a letter in them, but no knowledge.
func TestAdversarialAnswers(t *testing.T) {
	everything := "AMD, glaucoma, diabetic retinopathy, retinal detachment"
	rng := rand.New(rand.NewPCG(1, 2))
	for name, c := range map[string]struct {
		answer  func(q rollout.Question) string
		most    float64 // strict
		lenient float64
	}{
		"always A":            {func(rollout.Question) string { return wrap("A") }, 0.1875, 0.1875},
		"every letter":        {func(rollout.Question) string { return wrap("A,B,C,D") }, 0, 0.1875},
		"every letter, run":   {func(rollout.Question) string { return wrap("ABCD") }, 0, 0},
		"every diagnosis":     {func(rollout.Question) string { return wrap(everything) }, 0, 0},
		"A or B":              {func(rollout.Question) string { return wrap("A or B") }, 0, 0.25},
		"not A":               {func(rollout.Question) string { return wrap("not A") }, 0, 0.25},
		"one block a letter":  {func(rollout.Question) string { return "<think>x</think>" + wrapEach("A", "B", "C", "D") }, 0, 0.0625},
		"the question again":  {func(q rollout.Question) string { return wrap(q.Text) }, 0, 0.25},
		"empty":               {func(rollout.Question) string { return wrap("") }, 0, 0},
		"nothing":             {func(rollout.Question) string { return "" }, 0, 0},
		"answer within think": {func(rollout.Question) string { return "<think><answer>A</answer></think>" }, 0.1875, 0.1875},
		"both truths":         {func(rollout.Question) string { return wrap("True and False") }, 0, 0.25},
		"a letter and a lie":  {func(rollout.Question) string { return wrap("A. the right one") }, 0, 0.25},
		"long":                {func(rollout.Question) string { return wrap(strings.Repeat("A ", 4000)) }, 0, 0.25},
		"boxes in boxes":      {func(rollout.Question) string { return wrap(strings.Repeat(`\boxed{`, 300) + "A,B,C,D") }, 0, 0.1875},
		"random bytes": {func(rollout.Question) string {
			b := make([]byte, 60)
			for i := range b {
				b[i] = byte(rng.IntN(256))
			}
			return wrap(string(b))
		}, 0.05, 0.25},
	} {
		t.Run(name, func(t *testing.T) {
			var results []Result
			for i, q := range exam() {
				results = append(results, result(fmt.Sprint(i), q, c.answer(q)))
			}
			s := Summarise(results, Options{Greedy: true, Resamples: 100})
			if s.Overall.Strict.Value > c.most || s.Overall.Lenient.Value > c.lenient {
				t.Errorf("strict %v, want at most %v; lenient %v, want at most %v; %v",
					s.Overall.Strict.Value, c.most, s.Overall.Lenient.Value, c.lenient, s.Reasons)
			}
			if s.Overall.Strict.Value > s.Overall.Majority {
				t.Errorf("strict %v beats the majority baseline %v", s.Overall.Strict.Value, s.Overall.Majority)
			}
		})
	}
}

func wrapEach(answers ...string) string {
	return "<answer>" + strings.Join(answers, "</answer><answer>") + "</answer>"
}

// TestPerfectAndOrder: right answers in any dress are all right, and the order
// of the records does not matter.
func TestPerfectAndOrder(t *testing.T) {
	var results []Result
	for i, q := range exam() {
		results = append(results, result(fmt.Sprint(i), q, wrap("The answer is **"+q.Gold+"**.")))
	}
	s := Summarise(results, Options{Greedy: true})
	if s.Overall.Strict.Value != 1 || s.MacroStrict != 1 || s.Overall.SetF1.Value != 1 || s.Overall.Strict.High != 1 {
		t.Errorf("%+v, %v", s.Overall, s.Reasons)
	}
	near(t, "majority", s.Overall.Majority, (0.25+0.5+0.25+0.25)/4, 1e-12)
	reversed := make([]Result, len(results))
	for i, r := range results {
		reversed[len(results)-1-i] = r
	}
	again := Summarise(reversed, Options{Greedy: true})
	if again.Overall.Strict != s.Overall.Strict || again.Overall.Majority != s.Overall.Majority || len(again.Groups) != len(s.Groups) {
		t.Errorf("the order of records matters:\n%+v\n%+v", again.Overall, s.Overall)
	}
}
