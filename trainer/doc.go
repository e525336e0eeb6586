// Package trainer is the vocabulary of training: a [Batch] of groups, the
// [Scores] and [Report] that come back, and [Backend] and [Keeper], the seam
// behind which the in-process gorgonia trainer and the PyTorch ranks stand.
// It also holds what both sides must compute alike: token losses, KL
// estimators, aggregation, rollout correction and the plan over ranks.
//
// A backend is blind to the algorithm: it sees tokens, masks,
// log-probabilities and advantages, never rewards, groups' meaning or tau.
// This package touches no file, device or network.
//
// Axes: Q groups of a batch, G traces of a group, T response tokens of a
// trace, P prompt tokens. Log-probabilities, KL and entropies are in nats.
package trainer
