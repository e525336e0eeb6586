package phantom

import (
	"image"
	"testing"
)

// changed counts the pixels in which two pictures differ.
func changed(a, b *image.RGBA) int {
	n := 0
	for i := 0; i < len(a.Pix); i += 4 {
		if a.Pix[i] != b.Pix[i] || a.Pix[i+1] != b.Pix[i+1] || a.Pix[i+2] != b.Pix[i+2] {
			n++
		}
	}
	return n
}

// with is a plain scene with one finding in the upper left.
func with(f Finding) Scene {
	s := Scene{Contrast: 1, Seed: 21}
	s.Quadrants[UpperLeft] = f
	return s
}

func TestSizeAndNumberOfMarksAreControlled(t *testing.T) {
	plain := Render(with(Finding{}), 84)
	for _, l := range lesions {
		small := changed(plain, Render(with(Finding{Lesion: l, Marks: 2, Size: 0.8}), 84))
		large := changed(plain, Render(with(Finding{Lesion: l, Marks: 2, Size: 1.6}), 84))
		if large < small*2 {
			t.Errorf("%s: twice the radius changes %d pixels instead of %d, want at least twice as many", l, large, small)
		}
		many := changed(plain, Render(with(Finding{Lesion: l, Marks: 8, Size: 0.8}), 84))
		if many <= small {
			t.Errorf("%s: eight marks change %d pixels, two %d", l, many, small)
		}
	}
}

// Marks that do not overlap can be counted as islands of changed pixels.
func TestMarksCanBeCounted(t *testing.T) {
	const size = 256
	plain := Render(with(Finding{}), size)
	most := 0
	for seed := range uint64(16) {
		a, b := with(Finding{}), with(Finding{Lesion: Microaneurysms, Marks: 3, Size: 0.5})
		a.Seed, b.Seed = seed, seed
		n := islands(Render(a, size), Render(b, size))
		if n > 3 {
			t.Fatalf("seed %d: %d islands for 3 marks", seed, n)
		}
		most = max(most, n)
	}
	if most != 3 {
		t.Errorf("at most %d islands in 16 phantoms with 3 marks each", most)
	}
	if n := islands(plain, plain); n != 0 {
		t.Errorf("%d islands between a picture and itself", n)
	}
}

// islands counts the connected regions in which two pictures differ.
func islands(a, b *image.RGBA) int {
	size := a.Rect.Dx()
	seen := make([]bool, size*size)
	differs := func(p int) bool {
		return a.Pix[4*p] != b.Pix[4*p] || a.Pix[4*p+1] != b.Pix[4*p+1] || a.Pix[4*p+2] != b.Pix[4*p+2]
	}
	count := 0
	for p := range seen {
		if seen[p] || !differs(p) {
			continue
		}
		count++
		for stack := []int{p}; len(stack) > 0; {
			q := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if seen[q] || !differs(q) {
				continue
			}
			seen[q] = true
			for _, step := range []int{-1, 1, -size, size} {
				if r := q + step; r >= 0 && r < len(seen) {
					stack = append(stack, r)
				}
			}
		}
	}
	return count
}

func TestContrastFadesLesions(t *testing.T) {
	force := func(contrast float64) int {
		s := with(Finding{Lesion: Haemorrhages, Marks: 1, Size: 1})
		s.Contrast = contrast
		a, b, sum := Render(with(Finding{}), 84), Render(s, 84), 0
		for i := range a.Pix {
			sum += max(int(a.Pix[i]), int(b.Pix[i])) - min(int(a.Pix[i]), int(b.Pix[i]))
		}
		return sum
	}
	faint, plain := force(0.5), force(1)
	if ratio := float64(faint) / float64(plain); ratio < 0.45 || ratio > 0.55 {
		t.Errorf("half the contrast changes the picture by a share of %.2f, want about 0.5", ratio)
	}
}

func TestCamerasDiffer(t *testing.T) {
	mean := func(c Camera) [3]float64 {
		var sum [3]float64
		for img, i := Render(Scene{Camera: c, Seed: 5}, 84), 0; i < len(img.Pix); i += 4 {
			for k := range 3 {
				sum[k] += float64(img.Pix[i+k]) / (84 * 84)
			}
		}
		return sum
	}
	clinic, field := mean(Clinic), mean(Field)
	if field[0] > clinic[0]*0.85 || field[2]/field[0] < 1.2*clinic[2]/clinic[0] {
		t.Errorf("the field camera (mean %v) is not darker and bluer than the clinic's (%v)", field, clinic)
	}
}

// The corners are outside the aperture: black in every picture of every size.
func TestApertureAtEverySize(t *testing.T) {
	for _, size := range []int{28, 84, 112, 301} {
		img := Render(Scene{Seed: 3, DiscRight: true, Contrast: 1}, size)
		if img.Rect.Dx() != size || img.Rect.Dy() != size {
			t.Fatalf("size %d gives %v", size, img.Rect)
		}
		for _, p := range [][2]int{{0, 0}, {size - 1, 0}, {0, size - 1}, {size - 1, size - 1}} {
			if c := img.RGBAAt(p[0], p[1]); c.R+c.G+c.B != 0 || c.A != 255 {
				t.Errorf("size %d: corner %v is %v, want black", size, p, c)
			}
		}
		if c := img.RGBAAt(size/2, size/2); c.R < 60 {
			t.Errorf("size %d: the centre is %v", size, c)
		}
	}
}

func TestTheDiscIsWhereTheSceneSays(t *testing.T) {
	brightest := func(right bool) int {
		img := Render(Scene{DiscRight: right, Seed: 8}, 84)
		best, at := 0, 0
		for x := range 84 {
			if c := img.RGBAAt(x, 42); int(c.G) > best {
				best, at = int(c.G), x
			}
		}
		return at
	}
	if x := brightest(false); x > 28 {
		t.Errorf("a disc on the left is brightest at column %d", x)
	}
	if x := brightest(true); x < 56 {
		t.Errorf("a disc on the right is brightest at column %d", x)
	}
}

func BenchmarkRender84(b *testing.B) {
	s := with(Finding{Lesion: Drusen, Marks: 3, Size: 1})
	for b.Loop() {
		Render(s, 84)
	}
}
