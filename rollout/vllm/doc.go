// Package vllm samples from servers that speak vLLM's OpenAI-compatible HTTP
// surface: stock vLLM, or our own native server. [Fleet] implements
// rollout.Fleet over one or many of them: it balances jobs, watches each
// server's forward progress, retries elsewhere, and brings new weights live by
// directory (/pause, reload_weights, cache resets, /resume) or by broadcast from
// the trainer, in a group for each server (decision 16).
//
// What a server answers is checked before it is believed: number and order of
// choices, one finite log-probability for every token id, known finish reasons.
// Token ids come from the server; text is never tokenised here. The package
// does not start or restart servers, scores nothing, keeps no traces and reads
// no files: image bytes come from an injected [Images].
//
// A server's own sampling defaults never fill a gap, because every sampling
// field is sent, and its prefix cache never crosses policies, because the
// policy is the cache salt.
package vllm
