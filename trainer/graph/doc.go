// Package graph trains all of a micro Qwen2.5-VL on CPU cores, in the process:
// it is the gorgonia implementation of trainer.Backend and trainer.Keeper.
//
// The model is a gorgonia expression graph of fused operations (linear maps,
// RMS norm, rotary attention, SwiGLU, the vision tower's parts, log-softmax
// with exact entropy), each with a hand-written forward and the matching
// gradients; gorgonia differentiates the graph and runs its tape. The loss
// enters as derivatives with respect to log-probability and entropy that the
// pure functions of package trainer compute, so this package knows no
// algorithm. A prompt and its images are encoded once for all traces of a part.
//
// A batch is cut into chunks by its content alone. Each of a fixed number of
// lanes (goroutines) runs its chunks in order and the lanes' gradients are
// added in order, so the bits of an update depend neither on timing nor on
// GOMAXPROCS.
//
// It is a reference for models of about a million parameters. It will not grow
// device support, reduced precision, or sharding: real models are trained by
// the PyTorch process behind trainer/remote.
package graph
