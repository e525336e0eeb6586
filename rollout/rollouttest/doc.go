// Package rollouttest tests implementations of [rollout.Fleet]: [Run] is the
// conformance suite, a table of plain functions, and [Scripted] is a fleet in
// memory whose answers are a function of question, seed and policy version and
// whose failures are written down beforehand.
//
// It is test code only: it opens no connection, runs no model, and nothing that
// ships imports it.
package rollouttest
