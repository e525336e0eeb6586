package trainer

import "fmt"

// Plan says which rank and micro-batch trains each trace of a batch. Every
// rank has the same number of micro-batches; empty ones are allowed.
type Plan struct {
	Ranks        int
	MicroBatches int    // of each rank
	Parts        []Part // in (rank, micro-batch, group) order
}

// Part is a run of traces of one group that are processed together, so that
// prompt and images are encoded once for them.
type Part struct {
	Rank, MicroBatch int
	Group            int // index into Batch.Groups
	From, To         int // traces [From, To) of the group
}

// Of returns the parts of one micro-batch of one rank.
func (p Plan) Of(rank, microBatch int) []Part {
	var out []Part
	for _, part := range p.Parts {
		if part.Rank == rank && part.MicroBatch == microBatch {
			out = append(out, part)
		}
	}
	return out
}

// Check says whether p places every trace of groups exactly once, keeps each
// group on one rank, stays within its own numbers and is in order. A backend
// checks plans that it did not make.
func (p Plan) Check(groups []Group) error {
	if p.Ranks < 1 || p.MicroBatches < 0 {
		return fmt.Errorf("plan of %d ranks and %d micro-batches", p.Ranks, p.MicroBatches)
	}
	rank := make(map[int]int, len(groups))
	seen := make([][]bool, len(groups))
	for q, g := range groups {
		seen[q] = make([]bool, len(g.Traces))
	}
	for i, part := range p.Parts {
		if part.Rank < 0 || part.Rank >= p.Ranks || part.MicroBatch < 0 || part.MicroBatch >= p.MicroBatches {
			return fmt.Errorf("part %d is for rank %d of %d, micro-batch %d of %d", i, part.Rank, p.Ranks, part.MicroBatch, p.MicroBatches)
		}
		if part.Group < 0 || part.Group >= len(groups) {
			return fmt.Errorf("part %d is of group %d of %d", i, part.Group, len(groups))
		}
		g := groups[part.Group]
		if part.From < 0 || part.From >= part.To || part.To > len(g.Traces) {
			return &GroupError{Group: g.ID, Err: fmt.Errorf("part %d has traces [%d, %d) of %d", i, part.From, part.To, len(g.Traces))}
		}
		if i > 0 && comparePlaces(p.Parts[i-1], part) >= 0 {
			return fmt.Errorf("part %d is not in (rank, micro-batch, group) order", i)
		}
		if home, ok := rank[part.Group]; ok && home != part.Rank {
			return &GroupError{Group: g.ID, Err: fmt.Errorf("on ranks %d and %d", home, part.Rank)}
		}
		rank[part.Group] = part.Rank
		for t := part.From; t < part.To; t++ {
			if seen[part.Group][t] {
				return &GroupError{Group: g.ID, Err: fmt.Errorf("trace %d is planned twice", t)}
			}
			seen[part.Group][t] = true
		}
	}
	for q, g := range groups {
		for t, ok := range seen[q] {
			if !ok {
				return &GroupError{Group: g.ID, Err: fmt.Errorf("trace %d is not planned", t)}
			}
		}
	}
	return nil
}
