package matmul

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

func random(r *rand.Rand, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64())
	}
	return out
}

// reference is the definition in float64.
func reference(c, a, b View, add bool) []float64 {
	out := make([]float64, c.Rows*c.Cols)
	for i := range c.Rows {
		for j := range c.Cols {
			if add {
				out[i*c.Cols+j] = float64(c.Data[i*c.Row+j])
			}
			for k := range a.Cols {
				out[i*c.Cols+j] += float64(a.Data[i*a.Row+k*a.Col]) * float64(b.Data[k*b.Row+j*b.Col])
			}
		}
	}
	return out
}

func TestMulAgainstDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w Workspace
	for _, size := range [][3]int{{1, 1, 1}, {6, 32, 64}, {7, 33, 65}, {5, 16, 3}, {13, 48, 300}, {64, 192, 7}, {1, 400, 64}, {31, 9, 129}, {12, 64, 128}} {
		m, n, k := size[0], size[1], size[2]
		for variant := range 8 {
			a, b := Of(random(r, m*k), m, k), Of(random(r, k*n), k, n)
			if variant&1 != 0 {
				a = Of(random(r, k*m), k, m).T()
			}
			if variant&2 != 0 {
				b = Of(random(r, n*k), n, k).T()
			}
			add := variant&4 != 0
			c := Strided(random(r, m*(n+5)), m, n, n+5)
			before := append([]float32(nil), c.Data...)
			want := reference(c, a, b, add)
			w.Mul(c, a, b, add)
			for i := range m {
				for j := range n + 5 {
					got := c.Data[i*c.Row+j]
					if j >= n {
						if got != before[i*c.Row+j] {
							t.Fatalf("%v variant %d: wrote beyond row %d", size, variant, i)
						}
						continue
					}
					if math.Abs(float64(got)-want[i*n+j]) > 1e-5*math.Sqrt(float64(k))*4 {
						t.Fatalf("%v variant %d: (%d, %d) is %g, want %g", size, variant, i, j, got, want[i*n+j])
					}
				}
			}
		}
	}
}

// TestBitsDoNotDependOnTheBatch compares rows computed alone, in batches of
// several sizes and from shifted memory.
func TestBitsDoNotDependOnTheBatch(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var w Workspace
	const k, n = 192, 77
	b := Of(random(r, n*k), n, k).T()
	a := random(r, 70*k)
	alone := make([]float32, 70*n)
	for i := range 70 {
		w.Mul(Of(alone[i*n:(i+1)*n], 1, n), Of(a[i*k:(i+1)*k], 1, k), b, false)
	}
	for _, m := range []int{2, 6, 64, 65, 70} {
		for shift := range 3 {
			moved := append(make([]float32, shift), a...)[shift:]
			c := make([]float32, m*n)
			w.Mul(Of(c, m, n), Of(moved, m, k), b, false)
			for i := range c {
				if c[i] != alone[i] {
					t.Fatalf("batch of %d, shift %d: element %d is %v, alone %v", m, shift, i, c[i], alone[i])
				}
			}
		}
	}
}

// TestAddContinuesTheChain checks that a product cut in its inner dimension is
// the same chain of operations.
func TestAddContinuesTheChain(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var w Workspace
	const m, k, n = 11, 300, 40
	a, b := random(r, m*k), random(r, k*n)
	whole, parts := make([]float32, m*n), make([]float32, m*n)
	w.Mul(Of(whole, m, n), Of(a, m, k), Of(b, k, n), false)
	for from := 0; from < k; from += 50 {
		w.Mul(Of(parts, m, n), Strided(a[from:], m, 50, k), Of(b[from*n:], 50, n), true)
	}
	for i := range whole {
		if whole[i] != parts[i] {
			t.Fatalf("element %d: %v and %v", i, whole[i], parts[i])
		}
	}
}

func TestMulRefusesSizes(t *testing.T) {
	var w Workspace
	for name, call := range map[string]func(){
		"inner": func() {
			w.Mul(Of(make([]float32, 4), 2, 2), Of(make([]float32, 6), 2, 3), Of(make([]float32, 4), 2, 2), false)
		},
		"short": func() {
			w.Mul(Of(make([]float32, 3), 2, 2), Of(make([]float32, 4), 2, 2), Of(make([]float32, 4), 2, 2), false)
		},
		"column": func() {
			w.Mul(Of(make([]float32, 4), 2, 2).T(), Of(make([]float32, 4), 2, 2), Of(make([]float32, 4), 2, 2), false)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}

func BenchmarkMul(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, size := range [][3]int{{1024, 64, 64}, {1024, 384, 64}, {1024, 64, 192}, {1024, 400, 64}, {192, 48, 32}} {
		m, n, k := size[0], size[1], size[2]
		x, y, z := random(r, m*k), random(r, n*k), make([]float32, m*n)
		var w Workspace
		flops := 2 * float64(m) * float64(n) * float64(k)
		for name, call := range map[string]func(){
			"NT": func() { w.Mul(Of(z, m, n), Of(x, m, k), Of(y, n, k).T(), false) },
			"NN": func() { w.Mul(Of(x, m, k), Of(z, m, n), Of(y, n, k), false) },
			"TN": func() { w.Mul(Of(y, n, k), Of(z, m, n).T(), Of(x, m, k), true) },
		} {
			b.Run(fmt.Sprintf("%s/%dx%dx%d", name, m, n, k), func(b *testing.B) {
				for range b.N {
					clear(z)
					call()
				}
				b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
