// Package remote is [rollout.Fleet] over the bus: [Fleet] stands on the
// coordinator's side and [Worker] on the side of the inference servers, around
// another fleet (such as rollout/vllm) that talks to them.
//
//	Sample   job ──► JOBS ──► one worker ──► inner fleet ──► TRACES ──► group
//	Adopt    offer ──► value "policy" ──► every worker ──► reports ──► verdict
//	Commit   the step is durable: the traces are purged
//
// A worker publishes the group of a job create-only, waits for the
// confirmation, and only then takes the job off the queue; a worker that dies
// loses its job to another one. So a job may be sampled twice but is answered
// once: the first group stored wins, and the coordinator takes only groups of
// jobs that it has in flight. Whatever carries a lower incarnation than the
// coordinator's is ignored on both sides and purged.
//
// It samples nothing itself, scores nothing, keeps nothing across restarts
// (the run directory is the truth), and weights never pass through it: an
// offer is a path, a digest and a policy.
package remote
