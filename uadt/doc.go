// Package uadt turns rewards and token entropies of a rollout batch into
// shaped advantages: group baselines (grpo, dr_grpo, rloo), entropy estimators,
// the running threshold tau, the factor omega, the shaping rules, their
// schedules, and the alarms that must stay visible.
//
// UADT is Uncertainty-Aware Dynamic Thinking of arXiv 2508.16129. Its exact
// formula and hyperparameters are not published; what this package computes is
// a labelled reconstruction (see [Reconstruction]), and whatever shows one of
// its numbers says so.
//
// The package is pure: it reads no file, clock, network or global state, knows
// no model, trainer, reward or configuration format, and changes no loss. Sums
// run in job order, so that the same batches give the same bits.
//
// Axes: Q groups of a batch in job order, G traces of a group in seed order,
// T sampled tokens of a trace, end-of-sequence token included. Entropies and
// log-probabilities are in nats.
package uadt

// Reconstruction is the label that stands beside every UADT number.
const Reconstruction = "reconstruction: the exact UADT formula is unpublished"
