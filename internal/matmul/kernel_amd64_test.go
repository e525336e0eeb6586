//go:build amd64 && !purego

package matmul

import (
	"math/rand/v2"
	"testing"
)

// TestKernelsAgree compares the bits of the vector kernels with each other and
// their values with the Go loop.
func TestKernelsAgree(t *testing.T) {
	if !hasAVX2 {
		t.Log("this machine has no AVX2: only the Go kernel runs here")
		return
	}
	r := rand.New(rand.NewPCG(9, 10))
	for k := 1; k < 40; k += 3 {
		for _, add := range []bool{false, true} {
			a, b, c := random(r, tileRows*k), random(r, k*maxCols), random(r, tileRows*maxCols)
			narrow, loop := append([]float32(nil), c...), append([]float32(nil), c...)
			narrow, loop = append(narrow, narrow...), append(loop, loop...)
			a, c = append(a, a...), append(c, c...) // two tiles, one below the other
			call := func(to []float32, column int) *strip {
				p := &strip{k: k, a: &a[0], aRow: 4 * k, aCol: 4, b: &b[column], bRow: 4 * maxCols, c: &to[column], cRow: 4 * maxCols, tiles: 2}
				if add {
					p.add = 1
				}
				return p
			}
			kernelAVX2(call(narrow, 0))
			kernelAVX2(call(narrow, 16))
			kernelGo(Of(loop, 2*tileRows, maxCols), Of(a, 2*tileRows, k), Of(b, k, maxCols), add)
			if hasAVX512 {
				kernelAVX512(call(c, 0))
			} else {
				copy(c, narrow)
			}
			for i := range c {
				if c[i] != narrow[i] {
					t.Fatalf("k %d add %v element %d: AVX-512 %v, AVX2 %v", k, add, i, c[i], narrow[i])
				}
				if d := c[i] - loop[i]; d > 1e-5 || d < -1e-5 {
					t.Fatalf("k %d add %v element %d: vector %v, loop %v", k, add, i, c[i], loop[i])
				}
			}
		}
	}
}
