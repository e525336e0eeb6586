package vision

import (
	"errors"
	"image"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// reference is the inverse cosine transform by its definition, in float64.
func reference(b *[64]int16, quant *[64]int32) [64]float64 {
	var out [64]float64
	scale := func(k int) float64 {
		if k == 0 {
			return math.Sqrt2 / 4
		}
		return 0.5
	}
	for y := range 8 {
		for x := range 8 {
			sum := 0.0
			for v := range 8 {
				for u := range 8 {
					c := float64(b[8*v+u]) * float64(quant[8*v+u])
					sum += c * scale(u) * scale(v) * math.Cos(float64((2*x+1)*u)*math.Pi/16) * math.Cos(float64((2*y+1)*v)*math.Pi/16)
				}
			}
			out[8*y+x] = min(max(sum+128, 0), 255)
		}
	}
	return out
}

func TestInverseTransform(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b [64]int16
		var quant [64]int32
		for i := range b {
			b[i] = int16(rapid.IntRange(-20, 20).Draw(t, "coefficient"))
			quant[i] = int32(rapid.IntRange(1, 12).Draw(t, "quant"))
		}
		got, want := make([]byte, 64), reference(&b, &quant)
		inverse(&b, &quant, got, 8)
		for i, g := range got {
			// Rounding of half, and what 13 binary digits leave.
			if math.Abs(float64(g)-want[i]) > 0.6 {
				t.Fatalf("sample %d is %d, want %v", i, g, want[i])
			}
		}
	})
}

func TestInverseTransformOfOneCoefficient(t *testing.T) {
	// DC only: 8 * DC / 8 / 8, so 80 gives 10 over the middle; rows go by stride.
	b, quant := [64]int16{40}, [64]int32{2}
	out := make([]byte, 7*10+8)
	inverse(&b, &quant, out, 10)
	for y := range 8 {
		for x := range 8 {
			if out[10*y+x] != 138 {
				t.Fatalf("(%d, %d) is %d", x, y, out[10*y+x])
			}
		}
	}
	if out[8] != 0 || out[9] != 0 {
		t.Error("bytes between the rows were written")
	}
}

func TestColourPlanesAreWidened(t *testing.T) {
	// Worked by hand: three parts of the nearest sample, one of the next.
	for _, test := range []struct {
		name  string
		ratio image.YCbCrSubsampleRatio
		w, h  int
		pix   []byte
		want  [][]byte
	}{
		{"no subsampling", image.YCbCrSubsampleRatio444, 3, 1, []byte{1, 2, 3}, [][]byte{{1, 2, 3}}},
		{"half as wide", image.YCbCrSubsampleRatio422, 6, 1, []byte{0, 100, 40},
			[][]byte{{0, 25, 75, 85, 55, 40}}}, // 25 = (0*3+100+2)/4, 75 = (300+0+1)/4, 85 = (300+40+2)/4, 55 = (120+100+1)/4
		{"odd width", image.YCbCrSubsampleRatio422, 5, 1, []byte{0, 100, 40}, [][]byte{{0, 25, 75, 85, 55}}},
		{"too narrow to mix", image.YCbCrSubsampleRatio422, 4, 1, []byte{0, 100}, [][]byte{{0, 0, 100, 100}}},
		{"half as high", image.YCbCrSubsampleRatio440, 1, 4, []byte{0, 100}, [][]byte{{0}, {25}, {75}, {100}}},
		{"half both ways", image.YCbCrSubsampleRatio420, 6, 2, []byte{16, 32, 64},
			[][]byte{{16, 20, 28, 40, 56, 64}, {16, 20, 28, 40, 56, 64}}},
		{"a quarter as wide", image.YCbCrSubsampleRatio411, 6, 1, []byte{7, 9}, [][]byte{{7, 7, 7, 7, 9, 9}}},
		{"a quarter as wide, half as high", image.YCbCrSubsampleRatio410, 5, 3, []byte{7, 9, 1, 2},
			[][]byte{{7, 7, 7, 7, 9}, {7, 7, 7, 7, 9}, {1, 1, 1, 1, 2}}},
	} {
		s := &image.YCbCr{SubsampleRatio: test.ratio, Rect: image.Rect(0, 0, test.w, test.h)}
		p := newPlane(s, test.pix)
		p.stride = p.width
		for y, want := range test.want {
			got := make([]byte, test.w)
			if p.widen(got, y); !slices.Equal(got, want) {
				t.Errorf("%s, row %d: %v, want %v", test.name, y, got, want)
			}
		}
	}
}

func TestWideningStaysBetweenItsSamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ratio := rapid.SampledFrom([]image.YCbCrSubsampleRatio{image.YCbCrSubsampleRatio420, image.YCbCrSubsampleRatio422,
			image.YCbCrSubsampleRatio440}).Draw(t, "ratio")
		w, h := rapid.IntRange(1, 20).Draw(t, "w"), rapid.IntRange(1, 20).Draw(t, "h")
		p := newPlane(&image.YCbCr{SubsampleRatio: ratio, Rect: image.Rect(0, 0, w, h)}, nil)
		p.pix, p.stride = rapid.SliceOfN(rapid.ByteRange(50, 200), p.width*p.height, p.width*p.height).Draw(t, "pix"), p.width
		low, high := slices.Min(p.pix), slices.Max(p.pix)
		row := make([]byte, w)
		for y := range h {
			p.widen(row, y)
			if slices.Min(row) < low || slices.Max(row) > high {
				t.Fatalf("row %d: %v is not within %d and %d", y, row, low, high)
			}
		}
	})
}

func TestColourConversion(t *testing.T) {
	// The corners of the colour cube in JFIF's YCbCr, rounded.
	for ycc, want := range map[[3]byte][3]byte{
		{76, 85, 255}:   {254, 0, 0},
		{150, 44, 21}:   {0, 255, 1},
		{29, 255, 107}:  {0, 0, 254},
		{255, 128, 128}: {255, 255, 255},
		{0, 128, 128}:   {0, 0, 0},
	} {
		m := &Image{1, 1, make([]byte, 3)}
		m.fromJPEG(&image.YCbCr{Y: ycc[:1], Cb: ycc[1:2], Cr: ycc[2:], YStride: 1, CStride: 1,
			SubsampleRatio: image.YCbCrSubsampleRatio444, Rect: image.Rect(0, 0, 1, 1)})
		if got := [3]byte(m.Pix); got != want {
			t.Errorf("%v is %v, want %v", ycc, got, want)
		}
	}
	// Studio range: 16 is black, 235 white.
	for luma, want := range map[byte]byte{0: 0, 16: 0, 235: 255, 255: 255, 126: 128} {
		m := &Image{1, 1, make([]byte, 3)}
		m.fromWebP(&image.YCbCr{Y: []byte{luma}, Cb: []byte{128}, Cr: []byte{128}, YStride: 1, CStride: 1,
			SubsampleRatio: image.YCbCrSubsampleRatio420, Rect: image.Rect(0, 0, 1, 1)})
		if got := [3]byte(m.Pix); got != [3]byte{want, want, want} {
			t.Errorf("luma %d is %v, want %d", luma, got, want)
		}
	}
}

func TestReadingBits(t *testing.T) {
	r := bitReader{data: []byte{0b1010_0101, 0xff, 0x00, 0b1100_0000, 0xff, 0xd9}}
	for i, test := range []struct {
		n    uint
		want uint32
	}{{1, 1}, {3, 2}, {0, 0}, {4, 5}, {8, 0xff}, {2, 3}, {6, 0}} {
		if got, err := r.take(test.n); err != nil || got != test.want {
			t.Errorf("read %d: %d, %v, want %d", i, got, err, test.want)
		}
	}
	if _, err := r.take(1); !errors.Is(err, errEntropy) {
		t.Errorf("behind the end: %v", err)
	}
	for n, want := range map[uint][2]int32{1: {-1, 1}, 3: {-7, 7}, 8: {-255, 255}} {
		low := bitReader{data: []byte{0, 0}}
		high := bitReader{data: []byte{0xfe, 0xfe}}
		if got, err := low.signed(n); err != nil || got != want[0] {
			t.Errorf("%d bits, all 0: %d, %v", n, got, err)
		}
		if n < 8 {
			if got, err := high.signed(n); err != nil || got != want[1] {
				t.Errorf("%d bits, all 1: %d, %v", n, got, err)
			}
		}
	}
}

func TestCodes(t *testing.T) {
	// Lengths 1, 2, 10, 16: codes 0, 10, 1100000000, and one that begins 1100000001.
	counts := make([]byte, 16)
	counts[0], counts[1], counts[9], counts[15] = 1, 1, 1, 1
	var h huffman
	if err := h.build(counts, []byte{11, 22, 33, 44}); err != nil {
		t.Fatal(err)
	}
	r := bitReader{data: []byte{0b0_10_11000, 0b00000_0_11, 0b00000001, 0b000000_10, 0b11111111, 0x00, 0b11111111, 0x00}}
	for i, want := range []byte{11, 22, 33, 11, 44, 22} {
		if got, err := r.symbol(&h); err != nil || got != want {
			t.Fatalf("symbol %d: %d, %v, want %d", i, got, err, want)
		}
	}
	if got, err := r.symbol(&h); err == nil {
		t.Errorf("a code that does not exist is %d", got)
	}
	counts[0] = 3
	if err := h.build(counts, make([]byte, 6)); err == nil {
		t.Error("three codes of one bit were accepted")
	}
}

func TestKernelsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in, out := rapid.IntRange(1, 300).Draw(t, "in"), rapid.IntRange(1, 300).Draw(t, "out")
		k := newKernel(in, out)
		for i := range out {
			sum := int32(0)
			for _, w := range k.weights[i*k.width : i*k.width+k.size[i]] {
				sum += w
				if w >= 1<<15 || w < -1<<15 {
					t.Fatalf("weight %d does not fit 16 bits", w)
				}
			}
			if k.first[i] < 0 || k.size[i] < 1 || k.first[i]+k.size[i] > in {
				t.Fatalf("output %d takes %d inputs from %d on", i, k.size[i], k.first[i])
			}
			// Each weight is rounded by half a unit at most.
			if d := math.Abs(float64(sum - 1<<k.bits)); d > float64(k.size[i])/2 {
				t.Fatalf("weights of output %d add up to %d, want %d", i, sum, 1<<k.bits)
			}
		}
	})
}
