package phantom

import (
	"image"
	"image/color"
	"math"
	"math/rand/v2"
)

// canvas is a square picture in linear RGB, each channel in [0, 1]; positions
// are in units of half its side, x to the right and y downwards, the centre at
// 0.
type canvas struct {
	size int
	rgb  [][3]float64
}

// palette is the look of a camera.
type palette struct {
	fundus   [3]float64
	vignette float64 // how much darker the rim is, 0 to 1
	gain     float64
}

func paletteOf(c Camera) palette {
	if c == Field {
		return palette{fundus: [3]float64{0.62, 0.36, 0.26}, vignette: 0.45, gain: 0.9}
	}
	return palette{fundus: [3]float64{0.80, 0.38, 0.18}, vignette: 0.25, gain: 1}
}

// Render draws the scene as a square image of size pixels a side, at least 28.
func Render(s Scene, size int) *image.RGBA {
	r := rand.New(rand.NewPCG(s.Seed, 0x7068616e746f6d))
	c := &canvas{size: size, rgb: make([][3]float64, size*size)}
	c.background(r, paletteOf(s.Camera))
	discX := -0.66
	if s.DiscRight {
		discX = 0.66
	}
	discX += 0.04 * (r.Float64() - 0.5)
	discY := 0.06 * (r.Float64() - 0.5)
	c.blob(-0.1*discX, 0, look{0.17, [3]float64{0.45, 0.16, 0.07}, 0.55, true}) // macula
	c.vessels(r, discX, discY)
	c.disc(r, discX, discY, s.Cupped)
	for q, f := range s.Quadrants {
		c.finding(r, Quadrant(q), f, s.Contrast)
	}
	return c.image(paletteOf(s.Camera).gain)
}

// background fills the disc of the photograph: a shaded fundus on black.
func (c *canvas) background(r *rand.Rand, p palette) {
	type wave struct{ kx, ky, phase, amp float64 }
	waves := make([]wave, 4)
	for i := range waves {
		waves[i] = wave{6 * (r.Float64() - 0.5), 6 * (r.Float64() - 0.5), 2 * math.Pi * r.Float64(), 0.02}
	}
	bright := 0.92 + 0.16*r.Float64()
	for i := range c.rgb {
		x, y := c.at(i)
		rim := math.Hypot(x, y)
		level := bright * (1 - p.vignette*rim*rim)
		for _, w := range waves {
			level += w.amp * math.Cos(w.kx*x+w.ky*y+w.phase)
		}
		level *= clamp01((1.0 - rim) * 25) // soft edge of the aperture
		for k := range 3 {
			c.rgb[i][k] = level * p.fundus[k]
		}
	}
}

// vessels draws four arcades from the disc, each a bent line that thins out.
func (c *canvas) vessels(r *rand.Rand, dx, dy float64) {
	side := -math.Copysign(1, dx) // towards the macula
	for _, up := range []float64{-1, 1} {
		reach := 1.5 + 0.2*r.Float64()
		bend := 0.5 + 0.12*r.Float64()
		c.vessel(func(t float64) (float64, float64) {
			return dx + side*reach*t, dy + up*bend*math.Sin(math.Pi*(0.12+0.75*t))
		}, 0.032)
		drop := 0.55 + 0.15*r.Float64()
		c.vessel(func(t float64) (float64, float64) {
			return dx - side*0.25*t, dy + up*drop*t
		}, 0.026)
	}
}

// vessel darkens the points near path(t), 0 <= t <= 1.
func (c *canvas) vessel(path func(float64) (float64, float64), width float64) {
	mask := make(map[int]float64)
	const steps = 160
	for k := range steps {
		t := float64(k) / steps
		x, y := path(t)
		w := width * (1 - 0.6*t)
		c.around(x, y, 2*w, func(i int, d float64) {
			if m := clamp01(1.5 - d/w); m > mask[i] {
				mask[i] = m
			}
		})
	}
	for i, m := range mask { // each pixel once: the order does not matter
		c.mix(i, [3]float64{0.42, 0.10, 0.07}, 0.6*m)
	}
}

// disc draws the optic disc and its cup.
func (c *canvas) disc(r *rand.Rand, x, y float64, cupped bool) {
	radius := 0.19 + 0.02*r.Float64()
	cup := 0.3 + 0.1*r.Float64()
	if cupped {
		cup = 0.72 + 0.12*r.Float64()
	}
	c.blob(x, y, look{radius, [3]float64{0.93, 0.66, 0.36}, 0.95, false})
	c.blob(x, y, look{radius * cup, [3]float64{1, 0.95, 0.80}, 0.95, false})
}

// look is how a round spot is drawn; soft rims fade, hard ones end.
type look struct {
	radius float64
	colour [3]float64
	alpha  float64
	soft   bool
}

var looks = map[Lesion]look{
	Microaneurysms: {0.036, [3]float64{0.34, 0.02, 0.02}, 0.9, false},
	Haemorrhages:   {0.095, [3]float64{0.36, 0.03, 0.03}, 0.85, false},
	Exudates:       {0.040, [3]float64{1.00, 0.95, 0.45}, 1.0, false},
	Drusen:         {0.105, [3]float64{0.97, 0.80, 0.50}, 0.85, true},
}

// finding scatters the marks of f over the quadrant, inside the outer third
// of the image in both directions and inside the aperture.
func (c *canvas) finding(r *rand.Rand, q Quadrant, f Finding, contrast float64) {
	if f.Lesion == Clear {
		return
	}
	l := looks[f.Lesion]
	sx, sy := q.centre()
	for range f.Marks {
		var x, y float64
		for {
			x, y = 0.38+0.40*r.Float64(), 0.38+0.40*r.Float64()
			if math.Hypot(x, y) < 0.88 {
				break
			}
		}
		mark := l
		mark.radius *= f.Size * (0.85 + 0.3*r.Float64())
		mark.alpha *= contrast
		c.blob(sx*x, sy*y, mark)
	}
}

// blob mixes a round spot of the given look into the picture.
func (c *canvas) blob(x, y float64, l look) {
	pixel := 2 / float64(c.size)
	c.around(x, y, 2*l.radius+2*pixel, func(i int, d float64) {
		m := clamp01((l.radius-d)/pixel + 0.5)
		if l.soft {
			m = math.Exp(-d * d / (l.radius * l.radius))
		}
		c.mix(i, l.colour, l.alpha*m)
	})
}

// around calls visit for each pixel within reach of (x, y) with its distance.
func (c *canvas) around(x, y, reach float64, visit func(i int, d float64)) {
	half := float64(c.size) / 2
	lo := func(v float64) int { return max(0, int((v-reach+1)*half)-1) }
	hi := func(v float64) int { return min(c.size-1, int((v+reach+1)*half)+1) }
	for py := lo(y); py <= hi(y); py++ {
		for px := lo(x); px <= hi(x); px++ {
			i := py*c.size + px
			ix, iy := c.at(i)
			if d := math.Hypot(ix-x, iy-y); d <= reach {
				visit(i, d)
			}
		}
	}
}

// at is the position of pixel i's centre.
func (c *canvas) at(i int) (x, y float64) {
	half := float64(c.size) / 2
	return (float64(i%c.size)+0.5)/half - 1, (float64(i/c.size)+0.5)/half - 1
}

func (c *canvas) mix(i int, colour [3]float64, alpha float64) {
	for k := range 3 {
		c.rgb[i][k] += alpha * (colour[k] - c.rgb[i][k])
	}
}

func (c *canvas) image(gain float64) *image.RGBA {
	out := image.NewRGBA(image.Rect(0, 0, c.size, c.size))
	for i, p := range c.rgb {
		b := func(v float64) uint8 { return uint8(255*clamp01(gain*v) + 0.5) }
		out.SetRGBA(i%c.size, i/c.size, color.RGBA{b(p[0]), b(p[1]), b(p[2]), 255})
	}
	return out
}

func clamp01(v float64) float64 { return math.Min(1, math.Max(0, v)) }
