package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func random(r *rand.Rand, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64())
	}
	return out
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

func TestMulEqualsFloat64Reference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []struct{ rows, in, out int }{{1, 1, 1}, {3, 5, 7}, {12, 64, 64}, {29, 33, 50}, {7, 1176, 32}, {5, 3, 16}} {
		w, bias := random(r, size.out*size.in), random(r, size.out)
		m := Pack(w, bias, size.out, size.in)
		x := random(r, size.rows*size.in)
		dst := make([]float32, size.rows*m.Stride())
		m.Mul(dst, m.Stride(), x, size.in, size.rows)
		for row := range size.rows {
			for n := range m.Stride() {
				got := float64(dst[row*m.Stride()+n])
				want, scale := 0.0, 1.0
				if n < size.out {
					want = float64(bias[n])
					for k := range size.in {
						term := float64(x[row*size.in+k]) * float64(w[n*size.in+k])
						want += term
						scale += math.Abs(term)
					}
				}
				if math.Abs(got-want) > 2e-7*scale {
					t.Fatalf("%+v: [%d,%d] = %v, want %v", size, row, n, got, want)
				}
			}
		}
	}
}

func TestMulAddStartsFromDst(t *testing.T) {
	m := Pack([]float32{1, 2, 3, 4}, []float32{100, 100}, 2, 2)
	dst := make([]float32, m.Stride())
	dst[0], dst[1] = 10, 20
	m.MulAdd(dst, m.Stride(), []float32{1, 1}, 2, 1)
	if dst[0] != 13 || dst[1] != 27 || dst[2] != 0 {
		t.Errorf("got %v, want 13 27 0", dst[:3])
	}
}

// The promise of the package: a row's bits are its own.
func TestRowBitsDoNotDependOnTheBatch(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, in := range []int{1, 31, 64, 192} {
		const out, most = 50, 40
		m := Pack(random(r, out*in), random(r, out), out, in)
		x := random(r, most*in)
		all := make([]float32, most*m.Stride())
		m.Mul(all, m.Stride(), x, in, most)
		for rows := 1; rows <= most; rows++ {
			for _, start := range []int{0, 1, most - rows} {
				if start+rows > most {
					continue
				}
				part := make([]float32, rows*m.Stride())
				m.Mul(part, m.Stride(), x[start*in:], in, rows)
				if !sameBits(part, all[start*m.Stride():(start+rows)*m.Stride()]) {
					t.Fatalf("in %d: rows %d to %d differ when computed alone", in, start, start+rows)
				}
			}
		}
	}
}

func TestPanelWithoutTermsCopiesItsStart(t *testing.T) {
	start := random(rand.New(rand.NewPCG(5, 6)), 2*Width)
	c := make([]float32, 2*Width)
	Panel(Call{K: 0, Rows: 2, Init: start, LDInit: Width, C: c, LDC: Width})
	if !sameBits(c, start) {
		t.Errorf("got %v", c)
	}
	Panel(Call{K: 3, Rows: 0})
}

func TestExpSubWithinTwoUlp(t *testing.T) {
	x := make([]float32, 1<<16)
	for i := range x {
		x[i] = -87 + float32(i)*(87+87)/float32(len(x))
	}
	got := make([]float32, len(x))
	ExpSub(got, x, 1, 0)
	worst := 0.0
	for i := range x {
		want := math.Exp(float64(x[i]))
		ulp := float64(math.Nextafter32(float32(want), math.MaxFloat32)) - float64(float32(want))
		worst = max(worst, math.Abs(float64(got[i])-want)/ulp)
	}
	if worst > 2 {
		t.Errorf("worst error %.2f ulp", worst)
	}
}

func TestExpSubEdges(t *testing.T) {
	inf := float32(math.Inf(1))
	x := make([]float32, Width)
	copy(x, []float32{0, -inf, -88, -1e30, 2, 3})
	got := make([]float32, Width)
	ExpSub(got, x, 0.5, 0)
	if got[0] != 1 || got[1] != 0 || got[2] == 0 || got[3] != 0 || math.Abs(float64(got[4])-math.E) > 1e-6 {
		t.Errorf("got %v", got)
	}
	ExpSub(got, x, 1, 3)
	if got[5] != 1 || got[2] != 0 {
		t.Errorf("shifted: got %v", got)
	}
}

func TestSiLUMul(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	gate, up := random(r, 64), random(r, 64)
	gate[0], gate[1], up[1] = -100, 100, 1
	want := make([]float64, 64)
	for i := range want {
		g := float64(gate[i])
		want[i] = g / (1 + math.Exp(-g)) * float64(up[i])
	}
	SiLUMul(gate, up)
	for i := range want {
		if math.Abs(float64(gate[i])-want[i]) > 1e-6*(1+math.Abs(want[i])) {
			t.Errorf("[%d] = %v, want %v", i, gate[i], want[i])
		}
	}
}

func TestGoVersionAgrees(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	x, w, start := random(r, 5*64), random(r, 64*Width), random(r, Width)
	a, b := make([]float32, 5*Width), make([]float32, 5*Width)
	call := Call{K: 64, Rows: 5, X: x, LDX: 64, W: w, Init: start, C: a, LDC: Width}
	Panel(call)
	call.C = b
	panelGo(call)
	for i := range a {
		if math.Abs(float64(a[i]-b[i])) > 1e-5 {
			t.Fatalf("[%d] %v and %v", i, a[i], b[i])
		}
	}
	ea, eb := make([]float32, 64), make([]float32, 64)
	ExpSub(ea, x[:64], 2, 1)
	expSubGo(eb, x[:64], 2, 1)
	for i := range ea {
		if math.Abs(float64(ea[i]-eb[i])) > 1e-6*float64(eb[i]) {
			t.Fatalf("exp [%d] %v and %v", i, ea[i], eb[i])
		}
	}
	ga, gb := slices.Clone(x[:64]), slices.Clone(x[:64])
	SiLUMul(ga, x[64:])
	siluMulGo(gb, x[64:128])
	for i := range ga {
		if math.Abs(float64(ga[i]-gb[i])) > 1e-5 {
			t.Fatalf("silu [%d] %v and %v", i, ga[i], gb[i])
		}
	}
}

func BenchmarkMul(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, rows := range []int{1, 2, 4, 12, 48, 64} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			const in, out = 64, 384
			m := Pack(random(r, in*out), nil, out, in)
			x, dst := random(r, rows*in), make([]float32, rows*m.Stride())
			for b.Loop() {
				m.Mul(dst, m.Stride(), x, in, rows)
			}
			b.ReportMetric(float64(2*rows*in*out)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}

func BenchmarkExpSub(b *testing.B) {
	x := random(rand.New(rand.NewPCG(1, 1)), 400)
	for b.Loop() {
		ExpSub(x, x, 0.1, 0)
	}
}
