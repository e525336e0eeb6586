// Package internvl turns a checkpoint of InternVL in its original layout
// (InternVLChatModel, as OpenGVLab publishes it) into the layout that
// transformers has classes for (InternVLForConditionalGeneration), which is what
// the trainer and vLLM open. Weights are renamed and, where attention is fused,
// cut by rows; no bit of them changes.
//
// It knows the members of the family that have a Qwen2 language model and a
// vision tower with plain layer norms, InternVL3-2B among them. What it does not
// know it refuses by name before it writes anything; it guesses nothing, runs no
// code that comes with a checkpoint, and converts nothing back.
package internvl

import "errors"

// ErrUnsupported is wrapped by errors about checkpoints that are whole, but of
// another kind than this package converts.
var ErrUnsupported = errors.New("not a checkpoint that can be imported")

// ErrTensors is wrapped by errors about tensors that are missing, that nothing
// asks for, or that have another shape than config.json says.
var ErrTensors = errors.New("the tensors are not those of config.json")

// ErrExists is wrapped when the target is there already.
var ErrExists = errors.New("exists already")
