// Package coordinator runs the ring: it draws questions, has a fleet sample
// them, scores the traces, shapes their advantages, has a trainer step, and
// brings the new weights back to the fleet, stage after stage, from any
// checkpoint to the end of the recipe. It is the only package that sees the
// whole ring.
//
// It knows interfaces only and no adapter: no HTTP, bus, file or device is
// touched here. It computes no reward, advantage, loss or token; packages
// reward, uadt and trainer do. What is durable is behind [Store] and
// [Checkpoints].
//
// # Steps and policies
//
// Step n = 1..N of an RL stage trains rollout batch n and turns policy version
// n-1 into version n; version 0 is the policy at the stage's start. The shaping
// step of uadt and rollout.Job.Step are n-1. Batch n is sampled, refills
// included, by version
//
//	v(n) = max(0, n-1-max_staleness)
//
// counted from the stage's start (a second RL stage publishes higher numbers
// than the first), whatever the timing: so a run has the same bits unbroken or
// killed and resumed, on one server or on many. Global steps count the batches
// of all stages from 1; updates count optimizer updates of the whole run from 1.
//
// # Checkpoints
//
// Checkpoint m is snapshot right after step m, and sealed (manifest last) once
// the batches up to m+max_staleness are durable and the evaluations of
// versions below m are recorded: a resume then needs no policy older than the
// checkpoint's own. It follows that a stage which is stopped trains to the last
// step m for which nothing sampled is thrown away, and samples on to
// m+max_staleness, before it seals.
//
// # Limits
//
// A policy is replaced only when no job of it is left, refills included, on the
// whole fleet: the stragglers of a batch hold back the next version's jobs even
// on servers that are idle.
package coordinator
