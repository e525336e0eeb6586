package evaluate

import (
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

// newCell computes the numbers of results, all of which have responses.
func newCell(results []Result, classes map[class]string, options Options) Cell {
	c := Cell{Records: len(results)}
	if len(results) == 0 {
		return c
	}
	single := options.Greedy
	clusters := map[string]bool{}
	fewest := len(results[0].Outcomes)
	for _, r := range results {
		single = single && len(r.Outcomes) == 1
		clusters[r.cluster()] = true
		c.Responses += len(r.Outcomes)
		fewest = min(fewest, len(r.Outcomes))
		if classes[class{r.Dataset, r.Question.Kind}] == reward.GoldKey(r.Question) {
			c.Majority++
		}
	}
	c.Majority /= float64(len(results))
	c.Clusters = len(clusters)
	over := func(of func(Result) bool, value func(Outcome) float64) Estimate {
		var items []item
		for _, r := range results {
			if of(r) {
				items = append(items, item{r.cluster(), r.mean(value)})
			}
		}
		return estimate(items, single, options)
	}
	c.Strict, c.Lenient, c.Formatted = over(every, strict), over(every, lenient), over(every, formatted)
	c.Letter = over(kinds(rollout.SingleChoice, rollout.TrueFalse), strict)
	c.Set, c.SetF1 = over(kinds(rollout.MultipleChoice), strict), over(kinds(rollout.MultipleChoice), strictF1)
	c.Match, c.TokenF1 = over(kinds(rollout.Open), strict), over(kinds(rollout.Open), strictF1)
	c.GivenFormat = givenFormat(results, single, options)
	c.Judge = judged(results, single, options)
	if fewest > 1 {
		for _, k := range ks(fewest) {
			c.Passes = append(c.Passes, Pass{k, passes(results, k, options)})
		}
	}
	return c
}

func every(Result) bool { return true }

// kinds selects the records of some question types.
func kinds(wanted ...rollout.Kind) func(Result) bool {
	return func(r Result) bool {
		for _, k := range wanted {
			if r.Question.Kind == k {
				return true
			}
		}
		return false
	}
}

// filtered is the mean of value over the outcomes that keep accepts, over the
// records that have one.
func filtered(results []Result, single bool, options Options, keep func(Outcome) bool, value func(Outcome) float64) Estimate {
	var items []item
	for _, r := range results {
		kept := Result{}
		for _, o := range r.Outcomes {
			if keep(o) {
				kept.Outcomes = append(kept.Outcomes, o)
			}
		}
		if len(kept.Outcomes) > 0 {
			items = append(items, item{r.cluster(), kept.mean(value)})
		}
	}
	return estimate(items, single, options)
}

func givenFormat(results []Result, single bool, options Options) Estimate {
	return filtered(results, single, options, func(o Outcome) bool { return o.Formatted }, strict)
}

func judged(results []Result, single bool, options Options) Estimate {
	return filtered(results, single, options, func(o Outcome) bool { return o.Judge != nil }, func(o Outcome) float64 { return *o.Judge })
}

// passes is pass@k over results that all have at least k responses.
func passes(results []Result, k int, options Options) Estimate {
	items := make([]item, len(results))
	for i, r := range results {
		right := 0
		for _, o := range r.Outcomes {
			right += int(strict(o))
		}
		items[i] = item{r.cluster(), passAtK(len(r.Outcomes), right, k)}
	}
	return estimate(items, false, options)
}
