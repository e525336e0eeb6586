package reward

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

const diseases = "What is shown?\nA. Age-related macular degeneration\nB. Glaucoma\nC. Diabetic retinopathy\nD. A retinal tear"

var (
	single   = rollout.Question{Kind: rollout.SingleChoice, Text: diseases, Gold: "B"}
	multiple = rollout.Question{Kind: rollout.MultipleChoice, Text: diseases, Gold: "A,B"}
	openAMD  = rollout.Question{Kind: rollout.Open, Text: "What is it?", Gold: "AMD"}
	lens     = rollout.Question{Kind: rollout.SingleChoice, Text: "Which lens? A. +2.00 D B. -2.00 D C. -20 D", Gold: "B"}
	yesNo    = rollout.Question{Kind: rollout.TrueFalse, Text: "There is oedema. A. True B. False", Gold: "A"}
)

// What a policy may try when it does not know, and what it may not gain by it.
func TestAnswersThatMayNotPay(t *testing.T) {
	cases := []struct {
		q     rollout.Question
		block string
		want  Code
	}{
		// A question is no answer, whichever way the option is named.
		{single, "Glaucoma?", CodeHedged}, {single, "(Glaucoma?)", CodeHedged}, {single, "glaucoma ？", CodeHedged},
		{single, "B. Glaucoma?", CodeHedged}, {yesNo, "True?", CodeHedged}, {yesNo, "yes?", CodeHedged},
		{multiple, "Age-related macular degeneration, Glaucoma?", CodeHedged},
		{multiple, "A. Age-related macular degeneration, B. Glaucoma?", CodeHedged},
		// Letters of other alphabets and struck-out ones.
		{single, "\u0412", CodeNoLetter}, {single, "\u0392", CodeNoLetter}, {single, "B\u0336", CodeNoLetter}, {single, "ß", CodeNoLetter},
		{single, "\U0001f171", CodeNoLetter}, {single, "≠B", CodeNoLetter}, {single, "!B", CodeNoLetter}, {single, "¬B", CodeNoLetter},
		{single, "-B", CodeNoLetter}, {single, "\\cancel{B}", CodeNoLetter}, {single, "<del>B</del>", CodeNoLetter},
		// Everything at once.
		{single, "~~A~~ B", CodeSeveralLetters}, {single, "\\boxed{A}\\boxed{B}", CodeSeveralLetters}, {single, "B<|x|>A", CodeSeveralLetters},
		{single, "B\nC", CodeSeveralLetters}, {single, "B.A", CodeSeveralLetters}, {single, "B: A", CodeSeveralLetters},
		{single, "A)B)C)D)", CodeContradiction}, {single, "(A)(B)", CodeSeveralLetters}, {single, "ＡＢ", CodeSeveralLetters},
		{single, "B. Glaucoma, A. Age-related macular degeneration", CodeSeveralLetters},
		{single, "B. Glaucoma C. Diabetic retinopathy", CodeSeveralLetters},
		{single, "B. Glaucoma Glaucoma", CodeContradiction}, {single, "B. Glaucoma; also C", CodeContradiction},
		// Denials of every kind.
		{single, "B, not A", CodeNegated}, {single, "B. not glaucoma", CodeNegated}, {single, "It cannot be B", CodeNegated},
		{single, "never B", CodeNegated}, {single, "isn't B", CodeNegated}, {single, "\\text{not }B", CodeNegated},
		{multiple, "A, not B", CodeNegated}, {multiple, "A. Age-related macular degeneration, not B. Glaucoma", CodeNegated},
		{yesNo, "not false", CodeNegated}, {yesNo, "True, not", CodeNegated}, {yesNo, "untrue", CodeNoLetter}, {yesNo, "True False", CodeNoLetter},
		// A sign is part of a number.
		{lens, "2.00 D", CodeNoLetter}, {lens, "+2.00 D", CodeWrong}, {lens, "-20 D", CodeWrong}, {lens, "-2 D", CodeNoLetter},
		// Sets.
		{multiple, "ABCD", CodePartial}, {multiple, "ABCDE", CodeOutside}, {multiple, "ABBA", CodeNoLetter}, {multiple, "ab", CodeNoLetter},
		{multiple, "all of the above", CodeNoLetter}, {multiple, "A-D", CodeNoLetter}, {multiple, "A to D", CodeNoLetter}, {multiple, "none", CodeNoLetter},
		{multiple, "A and/or B", CodeHedged}, {multiple, "Glaucoma, Glaucoma", CodePartial}, {multiple, "A. Glaucoma, B. Glaucoma", CodeContradiction},
		// Lists of diagnoses, by any separator, and hedges.
		{openAMD, "AMD\nglaucoma", CodeListed}, {openAMD, "- AMD\n- PCV", CodeListed}, {openAMD, "1. AMD\n2. glaucoma", CodeListed},
		{openAMD, "AMD | glaucoma", CodeListed}, {openAMD, "AMD • glaucoma", CodeListed}, {openAMD, "AMD · PCV", CodeListed},
		{openAMD, "AMD > PCV > CNV", CodeListed}, {openAMD, "1) AMD 2) PCV", CodeListed}, {openAMD, "AMD plus glaucoma", CodeListed},
		{openAMD, "AMD versus PCV", CodeHedged}, {openAMD, "could be AMD", CodeHedged}, {openAMD, "A\u200bMD?", CodeHedged},
		{openAMD, "free of AMD", CodeNegated}, {openAMD, "lack of AMD", CodeNegated}, {openAMD, "never AMD", CodeNegated}, {openAMD, "cannot be AMD", CodeNegated},
		{openAMD, "AMD AMD AMD", CodePartial}, {openAMD, "non AMD", CodePartial}, {openAMD, "AM D", CodeWrong},
		{rollout.Question{Kind: rollout.Open, Gold: "-2.00 D"}, "2.00 D", CodePartial},
		{rollout.Question{Kind: rollout.Open, Gold: "IOP < 21 mmHg"}, "IOP > 21 mmHg", CodeListed},
		// Puzzles.
		{single, strings.Repeat("(", 2000) + "B" + strings.Repeat(")", 2000), CodeNoAnswer}, {single, strings.Repeat("- ", 2000) + "B", CodeNoAnswer},
		{openAMD, strings.Repeat("so ", 1300) + "AMD", CodeNoAnswer}, {single, strings.Repeat("<|", 900) + "a" + strings.Repeat("|>", 900), CodeNoAnswer},
	}
	for _, c := range cases {
		if got := Compare(c.q, c.block); got.Reason != c.want || got.Exact {
			t.Errorf("%s %.60q for gold %s: %+v, want %s", c.q.Kind, c.block, c.q.Gold, got, c.want)
		}
	}
}

// What looks alike to the rules above and is right.
func TestAnswersThatStillPay(t *testing.T) {
	doubtful := rollout.Question{Kind: rollout.SingleChoice, Text: "What would you ask? A. Any pain? B. Any floaters?", Gold: "B"}
	treatment := rollout.Question{Kind: rollout.SingleChoice, Text: "Next step? A. Observation B. Laser or injection C. No treatment", Gold: "B"}
	for _, c := range []struct {
		q     rollout.Question
		block string
	}{
		{treatment, "B"}, {treatment, "B. Laser or injection"}, {treatment, "Laser or injection"}, {treatment, "(B) laser or injection."},
		{lens, "-2.00 D"}, {lens, "\u22122.00 D"}, {lens, "B. -2.00 D"}, {lens, "B: \u22122.00 D"}, {doubtful, "Any floaters?"}, {doubtful, "B. Any floaters?"},
		{single, "𝐁"}, {single, "Ⓑ"}, {single, "⒝"}, {single, "\u2067B\u2069"[3:4]}, {single, "((((((((B))))))))"}, {single, "\\boxed{\\boxed{\\boxed{B}}}"},
		{single, "The final answer is:\nB"}, {single, "The answer is The answer is B.."}, {single, "So, thus the answer: the option is B"}, {multiple, "A\nB"}, {multiple, "B, A, A, B"}, {multiple, "Glaucoma; age related macular degeneration"},
		{openAMD, "Final answer:\nAMD"}, {openAMD, "**Diagnosis:** AMD"}, {openAMD, "AMD\n"}, {openAMD, "age‑related macular degeneration"},
		{rollout.Question{Kind: rollout.Open, Gold: "IOP 10-21 mmHg"}, "IOP 10–21 mmHg"}, {rollout.Question{Kind: rollout.Open, Gold: "type-2 diabetes"}, "type 2 diabetes"},
	} {
		if got := Compare(c.q, c.block); !got.Exact {
			t.Errorf("%q for gold %s: %+v", c.block, c.q.Gold, got)
		}
	}
}

// No wrapping of the tags buys the form, and the answer comes from the one
// answer block or from nowhere.
func TestFormsThatMayNotPay(t *testing.T) {
	const think, answer = "<think>x</think>", "<answer>B</answer>"
	for text, want := range map[string]Code{
		think + answer: CodeFormatted, " \n" + think + "\n\n" + answer + "\t": CodeFormatted,
		"<think>" + think + "</think>" + answer: CodeSeveralThinks, think + "<answer>" + answer + "</answer>": CodeSeveralAnswers,
		answer + think: CodeUnbalanced, "<think>" + answer + "</think>": CodeUnbalanced, "<answer>" + think + "B</answer>": CodeUnbalanced,
		"<Think>x</Think>" + answer: CodeNoThink, "<think >x</think >" + answer: CodeNoThink, think + "<ANSWER>B</ANSWER>": CodeNoAnswer,
		think + "<answer></answer>": CodeEmptyBlock, "<think>\u00a0</think>" + answer: CodeEmptyBlock, think + "</answer>B<answer>": CodeUnbalanced,
		think + "x" + answer: CodeTextOutside, "\ufeff" + think + answer: CodeTextOutside, think + answer + "<|im_end|>": CodeTextOutside,
		think + answer + answer: CodeSeveralAnswers, "<think>x" + answer: CodeUnbalanced, think + "<answer>B": CodeUnbalanced,
		"<\u200bthink>x</think>" + answer: CodeUnbalanced, "＜think＞x＜/think＞" + answer: CodeNoThink, "&lt;think&gt;x&lt;/think&gt;" + answer: CodeNoThink,
	} {
		if p := Format(rollout.Trace{Text: text}); p.Reason != want || (p.Value == 1) != (want == CodeFormatted) {
			t.Errorf("%q: %+v, want %s", text, p, want)
		}
	}
}

// A text of any size and making is scored in a bounded number of steps; what
// allocates is a step.
func TestWorkIsBoundedByTheText(t *testing.T) {
	pieces := []string{"so ", "(", "\\boxed{", "<|", "- ", "A. ", "[(", "# ", "the answer is ", "</s", "*_", "A and ", "\"'", "e\u0301", "\ufdfa", "<answer>", "<think>", "\n"}
	if testing.Short() {
		pieces = pieces[:5]
	}
	for _, piece := range pieces {
		for _, q := range []rollout.Question{single, multiple, yesNo, openAMD} {
			work := func(size int) float64 {
				text := strings.Repeat(piece, size/len(piece))
				trace := rollout.Trace{Text: "<think>x</think><answer>" + text + "</answer>"}
				return testing.AllocsPerRun(1, func() { Strict(q, trace); Format(trace) })
			}
			small, full := work(1000), work(4000)
			if full > 40*(small+100) || full > 200_000 {
				t.Errorf("%s of %q: %v allocations for 1 kB, %v for 4 kB", q.Kind, piece, small, full)
			}
			if huge := work(1 << 20); huge > 100 {
				t.Errorf("%s of %q: %v allocations for 1 MB that is no answer", q.Kind, piece, huge)
			}
		}
	}
}

// No text that lacks the gold letter and the gold option's words is right, and
// no decoration makes a wrong letter right or a right one wrong by itself.
func TestDecorationChangesNothing(t *testing.T) {
	wraps := [][2]string{{"", ""}, {"**", "**"}, {"(", ")"}, {"\\boxed{", "}"}, {"The answer is ", "."}, {"答案：", "。"}, {" ", "\n"}, {"\"", "\""}, {"$", "$"}, {"Option ", ""}, {"", "<|im_end|>"}}
	rapid.Check(t, func(t *rapid.T) {
		letter := rapid.SampledFrom([]string{"A", "B", "C", "D", "E"}).Draw(t, "letter")
		block := letter
		for range rapid.IntRange(0, 4).Draw(t, "layers") {
			w := rapid.SampledFrom(wraps).Draw(t, "wrap")
			block = w[0] + block + w[1]
		}
		a := Compare(single, block)
		if a.Exact != (letter == "B") {
			t.Fatalf("%q: %+v", block, a)
		}
		noise := rapid.StringMatching(`[ac-ko-z .,()*]{0,30}`).Draw(t, "noise")
		if got := Compare(single, noise); got.Exact {
			t.Fatalf("%q is right: %+v", noise, got)
		}
	})
}
