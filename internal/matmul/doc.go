// Package matmul multiplies float32 matrices in plain Go and a few lines of
// assembly, for models small enough to be trained on a CPU.
//
// Every element of a product is one chain of fused multiply-adds over the
// inner dimension, in ascending order. Its bits therefore do not depend on the
// number of rows, on tiles, threads, vector width or the alignment of slices:
// a row has the same bits alone and in any batch, and AVX2 and AVX-512 agree.
// Machines without fused multiply-add vectors use a Go loop; its bits may
// differ from theirs.
//
// The package starts no goroutine, holds no global state beyond what the CPU
// can do, and will not grow into a tensor library.
package matmul
