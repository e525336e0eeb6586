// Package bus is the only door to NATS JetStream: an embedded server ([Start])
// or an external one ([Dial]), and over it three small things, of which
// consumers declare the interfaces that they need:
//
//   - [Queue], work that is handed to one taker at a time and back to the queue
//     when the taker dies;
//   - [Log], values that are created once under a key, fetched, followed and
//     purged by key, of any size (large ones travel in parts);
//   - [Values] and [Lease], the latest value of a key, and the right to be the
//     only holder of one.
//
// It knows no job, trace or tensor and decides nothing about them; weights and
// images never cross it. Every subject carries the run and the incarnation of
// the coordinator ([Scope]), so that what an older coordinator left behind is
// recognised, ignored and purged. Nothing in here is durable truth: the run
// directory is, and a bus that lost everything costs time only.
//
// # Layout on the wire
//
// A value lies at uadt.<run>.<e>.<kind>.<key>, with the headers Uadt-Schema
// (name/major version of the content) and Uadt-Crc32c (Castagnoli, 8 hex
// digits). A value over [PartBytes] lies there as a manifest, with the header
// Uadt-Parts: manifest and a JSON body (see [Manifest]); its parts were
// published before it at <the value's subject>.part-<nonce>-<i>, with the header
// Uadt-Parts: part, and are found by the stream sequences in the manifest. The
// nonce keeps apart the parts of two writers of one key; only the manifest is
// create-only. Parts without a manifest go with the purge of their key.
package bus
