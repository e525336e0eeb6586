package trainer

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
