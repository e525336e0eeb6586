package matmul

import "fmt"

const (
	tileRows = 6   // rows of C that a kernel call computes
	maxCols  = 32  // most columns of C that a kernel call computes
	blockK   = 128 // inner steps between visits of C: keeps a panel of B in the first-level cache
)

// View is a matrix that lies in Data: element (i, j) at Data[i*Row+j*Col].
type View struct {
	Data       []float32
	Rows, Cols int
	Row, Col   int // distance in elements between rows and between columns
}

// Of views data as a dense row-major matrix.
func Of(data []float32, rows, cols int) View {
	return View{Data: data, Rows: rows, Cols: cols, Row: cols, Col: 1}
}

// Strided views data as a row-major matrix whose rows lie row elements apart.
func Strided(data []float32, rows, cols, row int) View {
	return View{Data: data, Rows: rows, Cols: cols, Row: row, Col: 1}
}

// T is the transpose of v, without copying.
func (v View) T() View {
	return View{Data: v.Data, Rows: v.Cols, Cols: v.Rows, Row: v.Col, Col: v.Row}
}

// check panics if v reaches beyond its data: the kernels do not look.
func (v View) check(name string) {
	if v.Rows == 0 || v.Cols == 0 {
		return
	}
	if last := (v.Rows-1)*v.Row + (v.Cols-1)*v.Col; v.Rows < 0 || v.Cols < 0 || last >= len(v.Data) {
		panic(fmt.Sprintf("matmul: %s is %d x %d with strides %d, %d in %d elements", name, v.Rows, v.Cols, v.Row, v.Col, len(v.Data)))
	}
}

// Workspace holds the scratch memory of one goroutine's products. The zero
// value is ready; it must not be used by two goroutines at once.
type Workspace struct {
	panel []float32                   // packed columns of B
	rows  []float32                   // packed last rows of A
	tile  [tileRows * maxCols]float32 // a tile of C that is cut off at its edges
}

// Mul sets c = a*b, or adds the product to c. The columns of c must be
// adjacent (Col 1); c must not overlap a or b. Sizes that do not fit are a
// programming error and panic.
func (w *Workspace) Mul(c, a, b View, add bool) {
	if a.Rows != c.Rows || b.Cols != c.Cols || a.Cols != b.Rows || c.Col != 1 {
		panic(fmt.Sprintf("matmul: %d x %d times %d x %d into %d x %d (column stride %d)", a.Rows, a.Cols, b.Rows, b.Cols, c.Rows, c.Cols, c.Col))
	}
	a.check("a")
	b.check("b")
	c.check("c")
	if c.Rows == 0 || c.Cols == 0 {
		return
	}
	if a.Cols == 0 {
		if !add {
			for i := range c.Rows {
				clear(c.Data[i*c.Row : i*c.Row+c.Cols])
			}
		}
		return
	}
	for k := 0; k < a.Cols; k += blockK {
		depth := min(blockK, a.Cols-k)
		w.block(c,
			View{Data: a.Data[k*a.Col:], Rows: a.Rows, Cols: depth, Row: a.Row, Col: a.Col},
			View{Data: b.Data[k*b.Row:], Rows: depth, Cols: b.Cols, Row: b.Row, Col: b.Col},
			add || k > 0)
	}
}

// block is Mul for an inner dimension of at most blockK.
func (w *Workspace) block(c, a, b View, add bool) {
	full := a.Rows / tileRows * tileRows
	tail := w.packRows(a, full)
	for j := 0; j < c.Cols; j += kernelCols {
		width := min(kernelCols, c.Cols-j)
		panel := w.packPanel(b, j, width)
		switch {
		case full == 0:
		case width == kernelCols:
			kernel(View{Data: c.Data[j:], Rows: full, Cols: width, Row: c.Row, Col: 1},
				View{Data: a.Data, Rows: full, Cols: a.Cols, Row: a.Row, Col: a.Col}, panel, add)
		default:
			for i := 0; i < full; i += tileRows {
				rows := View{Data: a.Data[i*a.Row:], Rows: tileRows, Cols: a.Cols, Row: a.Row, Col: a.Col}
				w.cut(View{Data: c.Data[i*c.Row+j:], Rows: tileRows, Cols: width, Row: c.Row, Col: 1}, rows, panel, add)
			}
		}
		if full < a.Rows {
			w.cut(View{Data: c.Data[full*c.Row+j:], Rows: a.Rows - full, Cols: width, Row: c.Row, Col: 1}, tail, panel, add)
		}
	}
}

// cut computes one tile of c that is cut off at an edge, through scratch.
func (w *Workspace) cut(c, a, b View, add bool) {
	scratch := View{Data: w.tile[:], Rows: tileRows, Cols: kernelCols, Row: kernelCols, Col: 1}
	if add {
		for i := range c.Rows {
			copy(w.tile[i*kernelCols:], c.Data[i*c.Row:i*c.Row+c.Cols])
		}
	}
	kernel(scratch, a, b, add)
	for i := range c.Rows {
		copy(c.Data[i*c.Row:i*c.Row+c.Cols], w.tile[i*kernelCols:])
	}
}

// packRows copies the rows of a from row on, zero rows filling the tile.
func (w *Workspace) packRows(a View, row int) View {
	if row == a.Rows {
		return View{}
	}
	w.rows = grow(w.rows, tileRows*a.Cols)
	clear(w.rows)
	for i := range a.Rows - row {
		from := a.Data[(row+i)*a.Row:]
		to := w.rows[i*a.Cols : (i+1)*a.Cols]
		for k := range to {
			to[k] = from[k*a.Col]
		}
	}
	return View{Data: w.rows, Rows: tileRows, Cols: a.Cols, Row: a.Cols, Col: 1}
}

// packPanel returns width columns of b from column j on as kernelCols adjacent
// ones: b itself where they lie so already, a zero-padded copy otherwise.
func (w *Workspace) packPanel(b View, j, width int) View {
	if b.Col == 1 && width == kernelCols {
		return View{Data: b.Data[j:], Rows: b.Rows, Cols: width, Row: b.Row, Col: 1}
	}
	w.panel = grow(w.panel, b.Rows*kernelCols)
	if width < kernelCols {
		clear(w.panel)
	}
	if b.Col == 1 {
		for k := range b.Rows {
			copy(w.panel[k*kernelCols:], b.Data[k*b.Row+j:k*b.Row+j+width])
		}
	} else {
		for n := range width {
			from := b.Data[(j+n)*b.Col:]
			to := w.panel[n:]
			for k := range b.Rows {
				to[k*kernelCols] = from[k*b.Row]
			}
		}
	}
	return View{Data: w.panel, Rows: b.Rows, Cols: kernelCols, Row: kernelCols, Col: 1}
}

// grow returns s with length n, reusing its memory where it is large enough.
func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}
