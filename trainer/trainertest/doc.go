// Package trainertest tests implementations of [trainer.Backend] and
// [trainer.Keeper]: [Run] is the conformance suite, a table of plain functions,
// and [Scripted] is a trainer whose model is eight numbers that any lost,
// doubled or reordered step would change.
//
// It is test code only: nothing that ships imports it. It knows no algorithm,
// no real model and no network.
package trainertest
