package trainer

import (
	"cmp"
	"fmt"
	"slices"
)

// NewPlan spreads the traces of one update over ranks and micro-batches. The
// cost of a part is what a backend packs for it: the prompt once, and the
// response tokens of its traces. budget is the most tokens of a micro-batch; 0
// is no limit, and every rank then has one micro-batch.
//
// A group stays on one rank. One that is larger than the budget is cut into
// runs of traces, each with the prompt again; a single trace that does not fit
// is a *GroupError. Groups go to ranks, and parts to micro-batches, longest
// first to the least loaded (longest processing time: at most 4/3 of the best
// possible), ties by order, so that the same batch gives the same plan. All
// ranks have the same number of micro-batches, some perhaps empty.
func NewPlan(groups []Group, ranks, budget int) (Plan, error) {
	if ranks < 1 {
		return Plan{}, fmt.Errorf("plan for %d ranks: want at least 1", ranks)
	}
	if budget < 0 {
		return Plan{}, fmt.Errorf("plan with a budget of %d tokens: want at least 0", budget)
	}
	items := make([]item, len(groups)) // one a group
	parts := make([][]item, len(groups))
	for q, g := range groups {
		cut, err := cutGroup(q, g, budget)
		if err != nil {
			return Plan{}, err
		}
		parts[q] = cut
		items[q] = item{part: Part{Group: q}}
		for _, p := range cut {
			items[q].cost += p.cost
		}
	}
	byRank := make([][]item, ranks)
	for rank, members := range spread(items, ranks) {
		for _, g := range members {
			byRank[rank] = append(byRank[rank], parts[g.part.Group]...)
		}
	}
	plan := Plan{Ranks: ranks}
	for _, list := range byRank {
		plan.MicroBatches = max(plan.MicroBatches, len(firstFit(list, budget)))
	}
	for rank, list := range byRank {
		for m, bin := range pack(list, plan.MicroBatches, budget) {
			for _, it := range bin {
				it.part.Rank, it.part.MicroBatch = rank, m
				plan.Parts = append(plan.Parts, it.part)
			}
		}
	}
	slices.SortFunc(plan.Parts, comparePlaces)
	return plan, nil
}

// item is something to place, and its cost in tokens.
type item struct {
	part Part
	cost int
}

func comparePlaces(a, b Part) int {
	return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.MicroBatch, b.MicroBatch),
		cmp.Compare(a.Group, b.Group), cmp.Compare(a.From, b.From))
}

// cutGroup cuts group q into runs of traces that fit the budget, as few as
// possible and then as even as possible.
func cutGroup(q int, g Group, budget int) ([]item, error) {
	longest, total := 0, 0
	for _, s := range g.Traces {
		longest, total = max(longest, len(s.Tokens)), total+len(s.Tokens)
	}
	if len(g.Traces) == 0 {
		return nil, &GroupError{Group: g.ID, Err: fmt.Errorf("no traces")}
	}
	if budget == 0 {
		budget = len(g.Prompt) + total
	}
	if room := budget - len(g.Prompt); longest > room {
		return nil, &GroupError{Group: g.ID, Err: fmt.Errorf("a trace of %d tokens and its prompt of %d do not fit the budget of %d tokens a micro-batch", longest, len(g.Prompt), budget)}
	}
	fewest := len(runs(g, budget-len(g.Prompt)))
	low, high := longest, budget-len(g.Prompt) // least room that needs no more runs
	for low < high {
		middle := (low + high) / 2
		if len(runs(g, middle)) <= fewest {
			high = middle
		} else {
			low = middle + 1
		}
	}
	var out []item
	for _, r := range runs(g, high) {
		out = append(out, item{part: Part{Group: q, From: r[0], To: r[1]}, cost: len(g.Prompt) + r[2]})
	}
	return out, nil
}

// runs cuts the traces of g, in order, whenever the next would not fit in room:
// {from, to, tokens} of each run. Each trace must fit alone.
func runs(g Group, room int) [][3]int {
	var out [][3]int
	from, used := 0, 0
	for i, s := range g.Traces {
		if i > from && used+len(s.Tokens) > room {
			out = append(out, [3]int{from, i, used})
			from, used = i, 0
		}
		used += len(s.Tokens)
	}
	return append(out, [3]int{from, len(g.Traces), used})
}

// byCost returns the items from the longest to the shortest, ties in order.
func byCost(items []item) []item {
	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, func(a, b item) int { return cmp.Compare(b.cost, a.cost) })
	return sorted
}

// spread gives each item, longest first, to the bin with the least load.
func spread(items []item, bins int) [][]item {
	out := make([][]item, bins)
	load := make([]int, bins)
	for _, it := range byCost(items) {
		least := 0
		for b := range load {
			if load[b] < load[least] {
				least = b
			}
		}
		out[least] = append(out[least], it)
		load[least] += it.cost
	}
	return out
}

// firstFit packs items, longest first, each into the first bin with room. A
// budget of 0 has room for all.
func firstFit(items []item, budget int) [][]item {
	var out [][]item
	var load []int
	for _, it := range byCost(items) {
		at := slices.IndexFunc(load, func(used int) bool { return budget == 0 || used+it.cost <= budget })
		if at < 0 {
			at = len(out)
			out, load = append(out, nil), append(load, 0)
		}
		out[at] = append(out[at], it)
		load[at] += it.cost
	}
	return out
}

// pack puts items into count bins: evenly if that fits the budget, and as
// firstFit does, which needs no more than count, if not.
func pack(items []item, count, budget int) [][]item {
	if count == 0 {
		return nil
	}
	even := spread(items, count)
	for _, bin := range even {
		load := 0
		for _, it := range bin {
			load += it.cost
		}
		if budget > 0 && load > budget {
			return firstFit(items, budget)
		}
	}
	return even
}
