// Package serve is an HTTP server around the native engine that speaks the part
// of vLLM's API that a reinforcement-learning client uses, with the same JSON,
// status codes and errors: chat completions with images, log-probabilities and
// token ids, tokenization, pause and resume, reloading weights, metrics.
//
// It is safer than the original where that dies: a failed reload keeps the old
// weights and says so, caches are dropped with the weights they belong to, and
// an image's uuid never stands for other bytes than those it came with.
//
// It will not fetch images from other machines, run tools, constrain output to
// a grammar, or hold more than one model; requests that ask for what it cannot
// do are refused by name instead of being answered differently.
package serve
