package trainer

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// sized makes a group with a prompt and traces of the given lengths.
func sized(id string, prompt int, traces ...int) Group {
	g := Group{ID: id, Prompt: make([]int32, prompt)}
	for _, n := range traces {
		g.Traces = append(g.Traces, Sequence{Tokens: make([]int32, n)})
	}
	return g
}

// costs returns the tokens of each micro-batch: [rank][micro-batch].
func costs(p Plan, groups []Group) [][]int {
	out := make([][]int, p.Ranks)
	for r := range out {
		out[r] = make([]int, p.MicroBatches)
	}
	for _, part := range p.Parts {
		cost := len(groups[part.Group].Prompt)
		for _, s := range groups[part.Group].Traces[part.From:part.To] {
			cost += len(s.Tokens)
		}
		out[part.Rank][part.MicroBatch] += cost
	}
	return out
}

func TestPlanByHand(t *testing.T) {
	groups := []Group{sized("a", 2, 3, 3), sized("b", 2, 1, 1), sized("c", 4, 6, 6)} // costs 8, 4, 16
	p, err := NewPlan(groups, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := Plan{Ranks: 2, MicroBatches: 1, Parts: []Part{{0, 0, 2, 0, 2}, {1, 0, 0, 0, 2}, {1, 0, 1, 0, 2}}}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("without a budget: %+v, want %+v", p, want)
	}
	// With 10 tokens a micro-batch, c is cut in two and rank 1 has one empty.
	if p, err = NewPlan(groups, 2, 12); err != nil {
		t.Fatal(err)
	}
	want = Plan{Ranks: 2, MicroBatches: 2, Parts: []Part{{0, 0, 2, 0, 1}, {0, 1, 2, 1, 2}, {1, 0, 0, 0, 2}, {1, 1, 1, 0, 2}}}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("with a budget: %+v, want %+v", p, want)
	}
	if got := p.Of(1, 1); !reflect.DeepEqual(got, want.Parts[3:]) {
		t.Errorf("parts of rank 1, micro-batch 1: %+v", got)
	}
}

func TestPlanLeavesRanksEmpty(t *testing.T) {
	groups := []Group{sized("a", 2, 3)}
	p, err := NewPlan(groups, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	if p.MicroBatches != 1 || len(p.Parts) != 1 || len(p.Of(3, 0)) != 0 {
		t.Errorf("plan %+v", p)
	}
	if err := p.Check(groups); err != nil {
		t.Error(err)
	}
	none, err := NewPlan(nil, 2, 100)
	if err != nil || none.MicroBatches != 0 || len(none.Parts) != 0 {
		t.Errorf("plan of nothing %+v (%v)", none, err)
	}
}

// A group that must be cut is cut evenly: 2 x 3 traces rather than 5 and 1.
func TestPlanCutsEvenly(t *testing.T) {
	groups := []Group{sized("a", 10, 4, 4, 4, 4, 4, 4)}
	p, err := NewPlan(groups, 1, 31)
	if err != nil {
		t.Fatal(err)
	}
	if got := costs(p, groups); !reflect.DeepEqual(got, [][]int{{22, 22}}) {
		t.Errorf("costs %v", got)
	}
}

func TestPlanRefuses(t *testing.T) {
	groups := []Group{sized("small", 2, 3), sized("large", 8, 1, 5)}
	_, err := NewPlan(groups, 1, 12)
	var refused *GroupError
	if !errors.As(err, &refused) || refused.Group != "large" || !strings.Contains(err.Error(), "12 tokens") {
		t.Errorf("too large: %v", err)
	}
	if _, err = NewPlan([]Group{sized("void", 3)}, 1, 0); !errors.As(err, &refused) {
		t.Errorf("no traces: %v", err)
	}
	if _, err = NewPlan(groups, 0, 0); err == nil {
		t.Error("no ranks were accepted")
	}
	if _, err = NewPlan(groups, 1, -1); err == nil {
		t.Error("a budget below 0 was accepted")
	}
}

func drawGroups(t *rapid.T) []Group {
	var groups []Group
	for range rapid.IntRange(1, 12).Draw(t, "groups") {
		groups = append(groups, sized("g", rapid.IntRange(0, 30).Draw(t, "prompt"),
			rapid.SliceOfN(rapid.IntRange(0, 40), 1, 8).Draw(t, "traces")...))
	}
	return groups
}

// Every plan is valid, within the budget, and the same when made again.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		groups := drawGroups(t)
		ranks := rapid.IntRange(1, 5).Draw(t, "ranks")
		budget := rapid.SampledFrom([]int{0, 70, 100, 300}).Draw(t, "budget")
		p, err := NewPlan(groups, ranks, budget)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if err := p.Check(groups); err != nil {
			t.Fatalf("%v", err)
		}
		again, _ := NewPlan(groups, ranks, budget)
		if !reflect.DeepEqual(p, again) {
			t.Fatalf("two plans of the same batch")
		}
		used := 0
		for _, rank := range costs(p, groups) {
			for m, cost := range rank {
				if budget > 0 && cost > budget {
					t.Fatalf("micro-batch of %d tokens, budget %d", cost, budget)
				}
				if cost > 0 {
					used = max(used, m+1)
				}
			}
		}
		if budget == 0 && p.MicroBatches != 1 {
			t.Fatalf("%d micro-batches without a budget", p.MicroBatches)
		}
	})
}

// A list schedule leaves the busiest rank at most (ranks-1)/ranks of one group
// above the mean (Graham's bound).
func TestPlanIsBalanced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		groups := drawGroups(t)
		ranks := rapid.IntRange(1, 5).Draw(t, "ranks")
		p, err := NewPlan(groups, ranks, 0)
		if err != nil {
			t.Fatalf("%v", err)
		}
		total, busiest, largest := 0, 0, 0
		for _, rank := range costs(p, groups) {
			total, busiest = total+rank[0], max(busiest, rank[0])
		}
		for _, g := range groups {
			size := len(g.Prompt)
			for _, s := range g.Traces {
				size += len(s.Tokens)
			}
			largest = max(largest, size)
		}
		if busiest*ranks > total+(ranks-1)*largest {
			t.Fatalf("busiest rank has %d of %d over %d ranks, largest group %d", busiest, total, ranks, largest)
		}
	})
}

// The textbook case in which longest-first is the best, and first-come is not.
func TestPlanPutsTheLongestFirst(t *testing.T) {
	groups := []Group{sized("a", 0, 2), sized("b", 0, 3), sized("c", 0, 4), sized("d", 0, 6), sized("e", 0, 2), sized("f", 0, 2), sized("g", 0, 1)}
	p, err := NewPlan(groups, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := costs(p, groups); !reflect.DeepEqual(got, [][]int{{10}, {10}}) {
		t.Errorf("costs %v", got)
	}
}

func TestCheckRefusesBrokenPlans(t *testing.T) {
	groups := []Group{sized("a", 1, 2, 2), sized("b", 1, 2)}
	good := Plan{Ranks: 2, MicroBatches: 2, Parts: []Part{{0, 0, 0, 0, 1}, {0, 1, 0, 1, 2}, {1, 0, 1, 0, 1}}}
	if err := good.Check(groups); err != nil {
		t.Fatalf("a good plan: %v", err)
	}
	for part, change := range map[string]func(*Plan){
		"0 ranks":              func(p *Plan) { p.Ranks = 0 },
		"-1 micro-batches":     func(p *Plan) { p.MicroBatches = -1 },
		"rank 2 of 2":          func(p *Plan) { p.Parts[2].Rank = 2 },
		"micro-batch 2 of 2":   func(p *Plan) { p.Parts[2].MicroBatch = 2 },
		"group 2 of 2":         func(p *Plan) { p.Parts[2].Group = 2 },
		"traces [0, 2) of 1":   func(p *Plan) { p.Parts[2].To = 2 },
		"traces [0, 0) of 1":   func(p *Plan) { p.Parts[2].To = 0 },
		"not in":               func(p *Plan) { p.Parts[0], p.Parts[1] = p.Parts[1], p.Parts[0] },
		"planned twice":        func(p *Plan) { p.Parts[1].From = 0 },
		"on ranks 0 and 1":     func(p *Plan) { p.Parts[1].Rank, p.Parts[1].MicroBatch = 1, 0 },
		"trace 0 is not plann": func(p *Plan) { p.Parts = p.Parts[:2] },
		"trace 1 is not plann": func(p *Plan) { p.Parts = slices.Delete(p.Parts, 1, 2) },
	} {
		bad := Plan{Ranks: good.Ranks, MicroBatches: good.MicroBatches, Parts: slices.Clone(good.Parts)}
		change(&bad)
		if err := bad.Check(groups); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("want %q, got %v", part, err)
		}
	}
}
