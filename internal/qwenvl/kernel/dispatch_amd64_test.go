//go:build amd64 && !purego

package kernel

import (
	"math/rand/v2"
	"testing"
)

// AVX2 and AVX-512 give the same bits; the test runs on a machine with both.
func TestInstructionSetsAgreeToTheBit(t *testing.T) {
	if level != levelAVX512 {
		t.Logf("this machine has no AVX-512; its AVX2 path is compared with itself")
	}
	r := rand.New(rand.NewPCG(11, 12))
	const in, out, rows = 77, 90, 31
	m := Pack(random(r, out*in), random(r, out), out, in)
	x := random(r, rows*in)
	wide, narrow := make([]float32, rows*m.Stride()), make([]float32, rows*m.Stride())
	m.Mul(wide, m.Stride(), x, in, rows)
	was := level
	defer func() { level = was }()
	level = min(was, levelAVX2)
	m.Mul(narrow, m.Stride(), x, in, rows)
	if !sameBits(wide, narrow) {
		t.Error("AVX2 and AVX-512 differ")
	}
}
