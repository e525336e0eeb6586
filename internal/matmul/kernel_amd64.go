//go:build amd64 && !purego

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

// strip is the argument of a kernel: the tiles of one panel, from the top.
// Strides are in bytes. Every field is 8 bytes wide; the assembly counts on it.
type strip struct {
	k          int // inner steps, at least 1
	a          *float32
	aRow, aCol int
	b          *float32
	bRow       int
	c          *float32
	cRow       int
	add        int // 0 sets c, 1 adds to it
	tiles      int // at least 1; counted down
	// Bytes to the tile in progress; only the assembly touches them.
	aOff, cOff int //lint:ignore U1000 used by kernel_amd64.s
}

// kernelAVX512 computes tiles of 6 x 32: c = a*b or c += a*b.
//
//go:noescape
func kernelAVX512(p *strip)

// kernelAVX2 is kernelAVX512 for tiles of 6 x 16.
//
//go:noescape
func kernelAVX2(p *strip)

// kernel computes all rows of c, a multiple of tileRows, in kernelCols columns.
// The caller has checked all bounds.
func kernel(c, a, b View, add bool) {
	if !hasAVX2 && !hasAVX512 {
		kernelGo(c, a, b, add)
		return
	}
	p := strip{k: a.Cols, a: &a.Data[0], aRow: 4 * a.Row, aCol: 4 * a.Col, b: &b.Data[0], bRow: 4 * b.Row,
		c: &c.Data[0], cRow: 4 * c.Row, tiles: c.Rows / tileRows}
	if add {
		p.add = 1
	}
	if hasAVX512 {
		kernelAVX512(&p)
	} else {
		kernelAVX2(&p)
	}
}
