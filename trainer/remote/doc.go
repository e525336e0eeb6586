// Package remote is [trainer.Backend], [trainer.Keeper] and [trainer.Encoder]
// over the bus: it drives the ranks of trainer/pytorch, which hold the model.
// [New] looks for the ranks that others started (torchrun), or starts them
// itself ([Launch]).
//
// Each command is a frame (safetensors with a strict JSON message in its
// metadata) under the key <rank>.<session>-<number>.<command> of the kind
// train; the answer is one under <rank>.<session>-<number> of the kind score. A
// rank says who it is and that it lives twice a second, as the event
// trainer.<rank>. The value trainer of the run names the coordinator: its
// incarnation and a session that makes keys unique.
//
// A stage begins only with a full set of ranks of one instance. Any rank lost,
// silent or failed ends the stage with a [LostError]: nothing works until the
// next Begin, which looks for, or starts, another set. Every wait has a
// deadline.
//
// It computes nothing, reads no weights and no images, and knows nothing of
// PyTorch.
package remote
