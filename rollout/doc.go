// Package rollout is the vocabulary of sampling: a [Question], the [Job] that
// asks a fleet for several reasoning traces of it, the [Group] of traces that
// comes back, the [Policy] whose weights sampled them, and [Fleet], the one
// seam behind which every inference server stands.
//
// It holds types and pure functions only. It opens no connection, scores
// nothing and knows no algorithm; adapters live in rollout/vllm (HTTP) and
// rollout/remote (bus).
//
// Axes: Q questions of a step, G traces of a group, T sampled tokens of a
// trace (the end-of-sequence token included), P prompt tokens after image
// expansion. Log-probabilities and entropies are in nats.
package rollout
