package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSoftmaxEqualsFloat64(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	for _, n := range []int{16, 32, 400} {
		x := random(r, n)
		for i := range x {
			x[i] *= 20
		}
		x[3] = float32(math.Inf(-1))
		in := slices.Clone(x)
		const scale = 0.25
		sum := Softmax(x, scale)
		top, want := float64(slices.Max(in))*scale, 0.0
		for i, v := range in {
			e := math.Exp(float64(v)*scale - top)
			want += e
			if math.Abs(e-float64(x[i])) > 2e-6*e {
				t.Fatalf("n %d [%d]: %v, want %v", n, i, x[i], e)
			}
		}
		if math.Abs(want-float64(sum)) > 2e-6*want {
			t.Errorf("n %d: sum %v, want %v", n, sum, want)
		}
		clone := slices.Clone(in)
		if got := softmaxGo(clone, scale); math.Abs(float64(got)-want) > 2e-6*want {
			t.Errorf("portable sum %v, want %v", got, want)
		}
	}
}

// Trailing -Inf entries, as the gaps of a score row have, change no bit.
func TestSoftmaxIgnoresGaps(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 9))
	x := random(r, 48)
	long := slices.Clone(x)
	for range 32 {
		long = append(long, float32(math.Inf(-1)))
	}
	a, b := Softmax(x, 0.5), Softmax(long, 0.5)
	if a != b || !sameBits(x, long[:48]) {
		t.Errorf("sums %v and %v", a, b)
	}
}

func TestSoftmaxOfNothing(t *testing.T) {
	x := make([]float32, Width)
	for i := range x {
		x[i] = float32(math.Inf(-1))
	}
	for name, f := range map[string]func([]float32, float32) float32{"dispatched": Softmax, "portable": softmaxGo} {
		if sum := f(slices.Clone(x), 1); sum != 0 {
			t.Errorf("%s: sum %v, want 0", name, sum)
		}
	}
	if Softmax(nil, 1) != 0 {
		t.Error("empty row")
	}
}
