// Package archtest holds tests of the tree itself: who may import whom, how
// large files and functions may grow, that every package and exported name is
// documented, and that every shipped configuration loads. It has no code
// beside its tests and no opinion about what the code does.
package archtest
