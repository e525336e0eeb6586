package matmul

import "golang.org/x/sys/cpu"

var (
	hasAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL
	hasAVX2   = cpu.X86.HasAVX2 && cpu.X86.HasFMA
	// kernelCols is the number of columns of a tile on this machine.
	kernelCols = colsOf(hasAVX512)
)

func colsOf(wide bool) int {
	if wide {
		return maxCols
	}
	return maxCols / 2
}

// kernelAVX512 sets (or adds to) the 6 x 32 tile c the product of a, 6 x k, and
// b, k x 32. Strides are in bytes: aRow and aCol between rows and columns of a,
// bRow and cRow between rows of b and c, whose columns are adjacent.
//
//go:noescape
func kernelAVX512(k int, a *float32, aRow, aCol int, b *float32, bRow int, c *float32, cRow int, add bool)

// kernelAVX2 is kernelAVX512 for a 6 x 16 tile.
//
//go:noescape
func kernelAVX2(k int, a *float32, aRow, aCol int, b *float32, bRow int, c *float32, cRow int, add bool)

// kernel computes a full tile. The caller has checked all bounds.
func kernel(c, a, b View, add bool) {
	switch {
	case hasAVX512:
		kernelAVX512(a.Cols, &a.Data[0], 4*a.Row, 4*a.Col, &b.Data[0], 4*b.Row, &c.Data[0], 4*c.Row, add)
	case hasAVX2:
		kernelAVX2(a.Cols, &a.Data[0], 4*a.Row, 4*a.Col, &b.Data[0], 4*b.Row, &c.Data[0], 4*c.Row, add)
	default:
		kernelGo(c, a, b, add)
	}
}
