// Package evaluate turns answers to evaluation questions into numbers: accuracy
// by strict and lenient extraction side by side, exact letters and sets, F1,
// matches by name, accuracy given the right format, the majority-class baseline,
// pass@k and intervals, over all records and broken down by data set, modality,
// type and level.
//
// It is pure: it asks no model, reads and writes no file, and its bootstrap is
// seeded. It does not decide which answers to trust; reward does, and what could
// not be answered or has no usable gold answer is counted apart, never guessed.
package evaluate
