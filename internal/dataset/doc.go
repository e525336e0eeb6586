// Package dataset turns files of questions into [rollout.Question] values: the
// JSON arrays of MM-Retinal-Reason, caption pairs, OmniMedVQA, VLMEvalKit TSV,
// and CSV files of base64 images. A file is indexed once (the place of every
// record, cached beside it under its digest) and its records are read on
// demand, so that a million of them cost an offset each and no more. Images
// are held once, by SHA-256, in a blob store.
//
// A record that cannot be taken is counted with file, number and reason and
// left out; only too large a share of them stops the work.
//
// The package does not score answers, tokenise, resize images or decide what
// is trained.
package dataset
