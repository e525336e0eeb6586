// Package kernel is the float32 arithmetic of the native engine: a matrix
// product on weights packed in panels of 16 columns, the exponential, softmax
// and SiLU.
//
// Its one promise is that every output element is computed by the same
// operations in the same order whatever else is computed beside it: element
// (r, n) is init + x[r,0]*w[0,n] + x[r,1]*w[1,n] + ... from left to right, each
// step one fused multiply-add (AVX-512 and AVX2 give the same bits; the plain
// Go version on other machines rounds product and sum separately). So a row's
// bits do not depend on the number of rows, the row's place, or the split of
// rows over goroutines, which no BLAS that blocks by matrix size offers.
//
// It starts no goroutine, allocates nothing after packing, and will not handle
// layouts other than the ones described here.
package kernel

// Width is the number of columns of a panel. Output rows and vectors are padded
// to a multiple of it.
const Width = 16

// Pad rounds n up to a multiple of Width.
func Pad(n int) int { return (n + Width - 1) &^ (Width - 1) }

// Matrix is a weight matrix [in, out] packed for Mul: panel p holds columns
// 16p to 16p+15 as [in][16], the last panel filled with zeros.
type Matrix struct {
	In, Out int
	panels  []float32 // [Pad(Out)/16][In][16]
	bias    []float32 // [Pad(Out)], zeros when the layer has none
}

// Pack takes a weight in PyTorch's layout [out][in] and an optional bias [out].
func Pack(weight, bias []float32, out, in int) *Matrix {
	m := &Matrix{In: in, Out: out,
		panels: make([]float32, Pad(out)*in), bias: make([]float32, Pad(out))}
	copy(m.bias, bias)
	for n := range out {
		panel := m.panels[n/Width*in*Width:]
		for k := range in {
			panel[k*Width+n%Width] = weight[n*in+k]
		}
	}
	return m
}

// Stride is the least row stride of an output of m: Out padded.
func (m *Matrix) Stride() int { return len(m.bias) }

// Mul computes dst[r][:Stride] = bias + x[r] * m for rows rows. ldx and ldd are
// the row strides of x and dst in elements; ldd is at least Stride. Columns
// past Out are set to zero.
func (m *Matrix) Mul(dst []float32, ldd int, x []float32, ldx, rows int) {
	for p := 0; p < m.Stride(); p += Width {
		Panel(Call{K: m.In, Rows: rows, X: x, LDX: ldx, W: m.panels[p*m.In:],
			Init: m.bias[p:], LDInit: 0, C: dst[p:], LDC: ldd})
	}
}

// MulAdd computes dst[r][:Stride] += x[r] * m, without the bias: the residual
// sum. The dst values are where the accumulation starts.
func (m *Matrix) MulAdd(dst []float32, ldd int, x []float32, ldx, rows int) {
	for p := 0; p < m.Stride(); p += Width {
		Panel(Call{K: m.In, Rows: rows, X: x, LDX: ldx, W: m.panels[p*m.In:],
			Init: dst[p:], LDInit: ldd, C: dst[p:], LDC: ldd})
	}
}

// Call is one product with one panel: C[r][0:16] = Init[r][0:16] + X[r][0:K] * W,
// where W is [K][16]. LDX, LDInit and LDC are row strides in elements; an
// LDInit of 0 starts every row from the same 16 values. C may be Init.
type Call struct {
	K, Rows int
	X       []float32
	LDX     int
	W       []float32
	Init    []float32
	LDInit  int
	C       []float32
	LDC     int
}

// Panel computes one Call. K or Rows of 0 is allowed; with K 0, C becomes Init.
func Panel(c Call) {
	if c.Rows == 0 {
		return
	}
	// One bounds check for all that the assembly will touch.
	_ = c.C[(c.Rows-1)*c.LDC+Width-1]
	_ = c.Init[(c.Rows-1)*c.LDInit+Width-1]
	if c.K == 0 {
		for r := range c.Rows {
			copy(c.C[r*c.LDC:r*c.LDC+Width], c.Init[r*c.LDInit:r*c.LDInit+Width])
		}
		return
	}
	_ = c.X[(c.Rows-1)*c.LDX+c.K-1]
	_ = c.W[c.K*Width-1]
	panel(c)
}

// panelGo is the portable version. The conversions keep the compiler from
// fusing, so that it gives the same bits on every machine that runs it.
func panelGo(c Call) {
	for r := range c.Rows {
		x := c.X[r*c.LDX : r*c.LDX+c.K]
		var acc [Width]float32
		copy(acc[:], c.Init[r*c.LDInit:])
		w := c.W
		for _, v := range x {
			row := w[:Width:Width]
			for j := range acc {
				acc[j] += float32(v * row[j])
			}
			w = w[Width:]
		}
		copy(c.C[r*c.LDC:r*c.LDC+Width], acc[:])
	}
}
