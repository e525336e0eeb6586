package graph

// chunk is what one run of a graph computes: some parts of a batch, flattened.
// Its token rows are, part by part, the prompt and then each trace without its
// last token, which predicts nothing.
type chunk struct {
	tokens   []int32 // [N] ids; image positions hold 0
	feature  []int32 // [N] row of the merged image features, or -1 for text
	segments []segment
	cos, sin []float32 // [N, d/2] text rotary tables, d the head size

	head    []int32  // [R] token rows whose logits are wanted
	targets []target // [M] log-probabilities wanted, trace by trace
	traces  []traceRef

	vision visionRows
}

// segment is one prompt and the traces that attend to it.
type segment struct {
	prompt span
	traces []span // adjacent, after the prompt; empty ones allowed
}

// span is a run of rows.
type span struct{ from, to int }

func (s span) len() int { return s.to - s.from }

// rest is the span of all traces of the segment.
func (s segment) rest() span {
	if len(s.traces) == 0 {
		return span{s.prompt.to, s.prompt.to}
	}
	return span{s.traces[0].from, s.traces[len(s.traces)-1].to}
}

// target asks for the log-probability of one token id from one head row.
type target struct{ row, id int32 }

// traceRef says which trace of the batch the targets [from, to) are.
type traceRef struct {
	group, trace int
	targets      span
}

// visionRows are the patch rows of all images of a chunk, each image in the
// window order of the tower.
type visionRows struct {
	pixels   [][]float32 // per image [patches, patch dim], in window order
	patches  int
	windows  []span    // attention windows, in patch rows
	frames   []span    // what full-attention blocks attend within
	cos, sin []float32 // [patches, d/2], d the vision head size
}

// sizes are the row counts of a chunk, or the capacities of a graph.
type sizes struct{ tokens, head, targets, features int }

// sizes counts the rows of c. unit is the number of patches of one feature.
func (c *chunk) sizes(unit int) sizes {
	return sizes{tokens: len(c.tokens), head: len(c.head), targets: len(c.targets), features: c.vision.patches / unit}
}

// grow returns capacities that hold both s and need, rounded up so that a graph
// is rebuilt a few times at most.
func (s sizes) grow(need sizes) sizes {
	up := func(have, want int) int {
		if want <= have {
			return max(have, 1)
		}
		return (want + want/4 + 63) &^ 63
	}
	return sizes{tokens: up(s.tokens, need.tokens), head: up(s.head, need.head), targets: up(s.targets, need.targets), features: up(s.features, need.features)}
}

// holds tells whether capacities s suffice for need.
func (s sizes) holds(need sizes) bool {
	return s.tokens >= need.tokens && s.head >= need.head && s.targets >= need.targets && s.features >= need.features
}
