//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

// level is the widest instruction set of this machine that the package uses.
var level = detect()

const (
	levelGo = iota
	levelAVX2
	levelAVX512
)

func detect() int {
	switch {
	case cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL && cpu.X86.HasAVX2 && cpu.X86.HasFMA:
		return levelAVX512
	case cpu.X86.HasAVX2 && cpu.X86.HasFMA:
		return levelAVX2
	}
	return levelGo
}

// The assembly. Strides are in bytes; n and k are positive, n a multiple of 16.

//go:noescape
func panel12AVX512(k int, x *float32, ldx int, w, start *float32, lds int, c *float32, ldc int)

//go:noescape
func panel4AVX512(k int, x *float32, ldx int, w, start *float32, lds int, c *float32, ldc int)

//go:noescape
func panel6AVX2(k int, x *float32, ldx int, w, start *float32, lds int, c *float32, ldc int)

//go:noescape
func panel2AVX2(k int, x *float32, ldx int, w, start *float32, lds int, c *float32, ldc int)

//go:noescape
func panel1AVX2(k int, x *float32, ldx int, w, start *float32, lds int, c *float32, ldc int)

//go:noescape
func expSubAVX2(dst, x *float32, n int, scale, shift float32)

//go:noescape
func siluMulAVX2(gate, up *float32, n int)

//go:noescape
func softmaxAVX2(x *float32, n int, scale float32) (sum float32)

func panel(c Call) {
	if level == levelGo {
		panelGo(c)
		return
	}
	r := 0
	if level == levelAVX512 {
		for ; r+12 <= c.Rows; r += 12 {
			panel12AVX512(c.K, &c.X[r*c.LDX], c.LDX*4, &c.W[0], &c.Init[r*c.LDInit], c.LDInit*4, &c.C[r*c.LDC], c.LDC*4)
		}
		for ; r+4 <= c.Rows; r += 4 {
			panel4AVX512(c.K, &c.X[r*c.LDX], c.LDX*4, &c.W[0], &c.Init[r*c.LDInit], c.LDInit*4, &c.C[r*c.LDC], c.LDC*4)
		}
	}
	for ; r+6 <= c.Rows; r += 6 {
		panel6AVX2(c.K, &c.X[r*c.LDX], c.LDX*4, &c.W[0], &c.Init[r*c.LDInit], c.LDInit*4, &c.C[r*c.LDC], c.LDC*4)
	}
	for ; r+2 <= c.Rows; r += 2 {
		panel2AVX2(c.K, &c.X[r*c.LDX], c.LDX*4, &c.W[0], &c.Init[r*c.LDInit], c.LDInit*4, &c.C[r*c.LDC], c.LDC*4)
	}
	if r < c.Rows {
		panel1AVX2(c.K, &c.X[r*c.LDX], c.LDX*4, &c.W[0], &c.Init[r*c.LDInit], c.LDInit*4, &c.C[r*c.LDC], c.LDC*4)
	}
}

func expSub(dst, x []float32, scale, shift float32) {
	if level == levelGo {
		expSubGo(dst, x, scale, shift)
		return
	}
	expSubAVX2(&dst[0], &x[0], len(dst), scale, shift)
}

func siluMul(gate, up []float32) {
	if level == levelGo {
		siluMulGo(gate, up)
		return
	}
	siluMulAVX2(&gate[0], &up[0], len(gate))
}

func softmax(x []float32, scale float32) float32 {
	if level == levelGo {
		return softmaxGo(x, scale)
	}
	return softmaxAVX2(&x[0], len(x), scale)
}
