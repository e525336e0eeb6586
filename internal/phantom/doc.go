// Package phantom makes synthetic fundus photographs and questions about them.
// A phantom shows an optic disc, a macula, vessels and, by quadrant, lesions of
// a chosen kind, number and size; what it shows is known exactly, so captions,
// answers and reasoning traces are true by construction. Everything follows
// from a seed: item i of a split depends on nothing but the seed, the split's
// name and i.
//
// The questions need depth. What they ask for (a count of quadrants, the
// lesion in most of them, a stage) is not to be seen in one place; a trace
// that goes through the quadrants one by one can answer, one that guesses at a
// glance mostly cannot. The traces for SFT mix both kinds.
//
// Phantoms are drawings, not patients. The disease names follow a simple rule
// stated at [Scene.Diagnosis]; nothing here is for clinical use, and the
// package neither trains nor scores.
package phantom
