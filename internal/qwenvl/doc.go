// Package qwenvl is the native Qwen2.5-VL: it reads a Hugging Face checkpoint
// directory and samples reasoning traces from it on CPU cores, in float32,
// with the arithmetic of the published model (M-RoPE, grouped-query attention
// with QKV bias, SwiGLU, RMSNorm; a vision tower with 2-D RoPE, window and full
// attention, and the merger).
//
// It is batch-invariant to the bit: the tokens, log-probabilities and
// entropies of a trace depend on its prompt, its images, its sampling options,
// its seed and the weights, and on nothing else: not on the other traces that
// are decoded beside it, its slot, prefix reuse, or GOMAXPROCS.
//
// It will not train (trainer/graph does), tokenize text, decode images, speak
// HTTP (internal/serve does), or run on accelerators.
package qwenvl
