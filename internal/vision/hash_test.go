package vision

import (
	"math/rand/v2"
	"testing"
)

// scene is a smooth random picture: blobs on a gradient.
func scene(seed uint64, height, width int) *Image {
	random := rand.New(rand.NewPCG(seed, 1))
	m := &Image{Width: width, Height: height, Pix: make([]byte, 3*height*width)}
	type spot struct{ y, x, r, v float64 }
	var spots []spot
	for range 12 {
		spots = append(spots, spot{random.Float64(), random.Float64(), 0.05 + 0.2*random.Float64(), 200*random.Float64() - 100})
	}
	for y := range height {
		for x := range width {
			v := 128.0
			for _, s := range spots {
				dy, dx := float64(y)/float64(height)-s.y, float64(x)/float64(width)-s.x
				if dy*dy+dx*dx < s.r*s.r {
					v += s.v
				}
			}
			for c := range 3 {
				m.Pix[3*(y*width+x)+c] = byte(min(max(v, 0), 255))
			}
		}
	}
	return m
}

func TestDifferenceHashTellsCopiesFromStrangers(t *testing.T) {
	near, far := 0, 256
	for seed := range uint64(40) {
		original := scene(seed, 240, 320)
		for _, copied := range []*Image{original.Resize(120, 160), original.Resize(300, 400), brighter(original)} {
			near = max(near, original.DifferenceHash().Distance(copied.DifferenceHash()))
		}
		far = min(far, original.DifferenceHash().Distance(scene(seed+1000, 240, 320).DifferenceHash()))
	}
	if near >= far {
		t.Errorf("a copy differs in up to %d bits, a stranger in only %d", near, far)
	}
}

// brighter lifts every value by a tenth of what is left, which keeps the order.
func brighter(m *Image) *Image {
	out := &Image{Width: m.Width, Height: m.Height, Pix: make([]byte, len(m.Pix))}
	for i, v := range m.Pix {
		out.Pix[i] = v + (255-v)/10
	}
	return out
}

func TestHashDistance(t *testing.T) {
	if d := (Hash{0b1011, 0, 0, 1}).Distance(Hash{0b0010}); d != 3 {
		t.Errorf("distance is %d, want 3", d)
	}
}
