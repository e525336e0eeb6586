// Package experiments owns the run directory: the configuration and identity
// of a run, the lock that keeps a second coordinator out, durable rollout
// batches, checkpoints, the ledger and metrics.jsonl. Everything is either
// whole or absent: files appear by renaming, a checkpoint by renaming its
// directory after its manifest, and a line of metrics that does not fit on the
// disk is cut off again.
//
//	runs/<name>/
//	  config.yaml                    as resolved by the latest start
//	  run.json                       settings by class, starts, whether it is complete
//	  lock, incarnation
//	  metrics.jsonl                  a line for each (kind, step)
//	  ledger/step-NNNNNN.parquet     a row for each trace
//	  rollouts/step-NNNNNN.safetensors    tokens and log-probabilities as sampled
//	  rollouts/scores-NNNNNN.safetensors  what the trainer said about them
//	  checkpoints/step-NNNNNN/       policy, optimizer, state.json, manifest.json
//
// It does not decide what is trained, opens no connection and reads no model:
// states, documents and settings are the caller's and pass through unread. UADT
// numbers in a ledger are those of a reconstruction, as package uadt says.
package experiments
