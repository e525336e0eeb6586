package trainer

// Denominators are the sums over the whole optimizer update, all ranks and
// micro-batches together, that aggregation divides by.
type Denominators struct {
	Tokens    int // masked-in response tokens of all trained traces
	Sequences int // trained traces with at least one such token
	MaxTokens int // rollout.max_tokens: the length that seq_mean_token_sum_norm divides by
}
