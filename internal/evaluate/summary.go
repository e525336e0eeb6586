package evaluate

import (
	"cmp"
	"slices"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

// Options configures [Summarise].
type Options struct {
	// Greedy says that the responses were sampled at temperature 0. Only then,
	// and with one response a record, may an interval be Wilson's.
	Greedy    bool
	Resamples int    // of the bootstrap, default 2000
	Seed      uint64 // of the bootstrap; every value is valid
}

// Summary is an evaluation in numbers.
type Summary struct {
	Records int `json:"records"` // all that were put in
	// Unanswered records had no response, and NoGold no usable gold answer. They
	// are in no other number.
	Unanswered int `json:"unanswered"`
	NoGold     int `json:"no_gold"`
	// LetterOnly counts choice questions whose options could not be parsed.
	LetterOnly int  `json:"letter_only"`
	Overall    Cell `json:"overall"`
	// MacroStrict and MacroLenient are means over the question types, each type
	// counting the same.
	MacroStrict  float64 `json:"macro_strict"`
	MacroLenient float64 `json:"macro_lenient"`
	Groups       []Group `json:"groups"`
	// Reasons counts the responses by the reason of their strict extraction.
	Reasons        map[reward.Code]int `json:"reasons"`
	SynonymVersion int                 `json:"synonym_version"` // of the table that open answers were matched by
}

// Group is one row of the breakdown.
type Group struct {
	By   string `json:"by"`   // dataset, modality, type or level
	Name string `json:"name"` // "" when the record does not say
	Cell Cell   `json:"cell"`
}

// Cell is the numbers of a set of records. Estimates are means over records; a
// record's value is the mean over its responses.
type Cell struct {
	Records   int      `json:"records"`
	Responses int      `json:"responses"`
	Clusters  int      `json:"clusters"`
	Strict    Estimate `json:"strict"`  // right, and found where it belongs
	Lenient   Estimate `json:"lenient"` // right, wherever it was found
	Formatted Estimate `json:"formatted"`
	// GivenFormat is the strict accuracy of the records with at least one
	// response in the right form, over those responses only.
	GivenFormat Estimate `json:"given_format"`
	// Letter is the strict accuracy of single choice and true/false, Set and SetF1
	// those of multiple choice, Match and TokenF1 those of open questions.
	Letter  Estimate `json:"letter"`
	Set     Estimate `json:"set"`
	SetF1   Estimate `json:"set_f1"`
	Match   Estimate `json:"match"`
	TokenF1 Estimate `json:"token_f1"`
	Judge   Estimate `json:"judge"` // over the records that a judge saw
	// Majority is the accuracy of always answering the commonest gold answer of
	// the data set and type.
	Majority float64 `json:"majority"`
	Passes   []Pass  `json:"pass_at_k"`
}

// Pass is pass@k by strict extraction.
type Pass struct {
	K int `json:"k"`
	Estimate
}

// Summarise computes the numbers of results, in an order that does not depend
// on theirs except for the draws of the bootstrap.
func Summarise(results []Result, options Options) Summary {
	if options.Resamples == 0 {
		options.Resamples = 2000
	}
	s := Summary{Records: len(results), Reasons: map[reward.Code]int{}, SynonymVersion: reward.SynonymVersion()}
	var kept []Result
	for _, r := range results {
		switch {
		case reward.GoldKey(r.Question) == "":
			s.NoGold++
		case len(r.Outcomes) == 0:
			s.Unanswered++
		default:
			kept = append(kept, r)
			for _, o := range r.Outcomes {
				s.Reasons[o.Strict.Reason]++
			}
			s.LetterOnly += int(indicator(r.Outcomes[0].Strict.LetterOnly))
		}
	}
	classes := majorities(kept)
	s.Overall = newCell(kept, classes, options)
	for _, by := range breakdowns {
		groups := split(kept, by)
		for _, g := range groups {
			g.group.Cell = newCell(g.results, classes, options)
			s.Groups = append(s.Groups, g.group)
			if by.name == "type" {
				s.MacroStrict += g.group.Cell.Strict.Value / float64(len(groups))
				s.MacroLenient += g.group.Cell.Lenient.Value / float64(len(groups))
			}
		}
	}
	return s
}

// breakdown is a way of dividing records.
type breakdown struct {
	name string
	key  func(Result) string
}

var breakdowns = []breakdown{
	{"dataset", func(r Result) string { return r.Dataset }},
	{"modality", func(r Result) string { return r.Question.Modality }},
	{"type", func(r Result) string { return string(r.Question.Kind) }},
	{"level", func(r Result) string { return string(r.Question.Level) }},
}

type divided struct {
	group   Group
	results []Result
}

// split divides results, the groups ordered by name.
func split(results []Result, by breakdown) []divided {
	at := map[string]int{}
	var groups []divided
	for _, r := range results {
		key := by.key(r)
		i, ok := at[key]
		if !ok {
			i = len(groups)
			at[key] = i
			groups = append(groups, divided{group: Group{By: by.name, Name: key}})
		}
		groups[i].results = append(groups[i].results, r)
	}
	slices.SortFunc(groups, func(a, b divided) int { return cmp.Compare(a.group.Name, b.group.Name) })
	return groups
}

// class is a data set and a question type, within which the majority is taken.
type class struct {
	dataset string
	kind    rollout.Kind
}

// majorities finds the commonest gold answer of each class; of equally common
// ones the first by name.
func majorities(results []Result) map[class]string {
	counts := map[class]map[string]int{}
	for _, r := range results {
		c := class{r.Dataset, r.Question.Kind}
		if counts[c] == nil {
			counts[c] = map[string]int{}
		}
		counts[c][reward.GoldKey(r.Question)]++
	}
	best := map[class]string{}
	for c, golds := range counts {
		for gold, n := range golds {
			if b, ok := best[c]; !ok || n > golds[b] || n == golds[b] && gold < b {
				best[c] = gold
			}
		}
	}
	return best
}
