package vision

import (
	"image"
	"image/color"
)

// toRGB turns what a decoder made into 8-bit RGB.
func toRGB(src image.Image, format string) *Image {
	b := src.Bounds()
	m := &Image{b.Dx(), b.Dy(), make([]byte, b.Dx()*b.Dy()*3)}
	switch s := src.(type) {
	case *image.YCbCr:
		if format == "WebP" {
			m.fromWebP(s)
		} else {
			m.fromJPEG(s)
		}
	case *image.NYCbCrA:
		m.fromWebP(&s.YCbCr)
		for y := range m.Height {
			for x := range m.Width {
				m.onWhite(y, x, s.A[s.AOffset(b.Min.X+x, b.Min.Y+y)])
			}
		}
	case *image.Gray:
		for y := range m.Height {
			for x := range m.Width {
				v := s.GrayAt(b.Min.X+x, b.Min.Y+y).Y
				m.put(y, x, v, v, v)
			}
		}
	case *image.NRGBA:
		m.fromQuads(s.Pix, s.Stride)
	case *image.RGBA:
		if !s.Opaque() {
			m.fromAny(src) // colours multiplied by opacity
			break
		}
		m.fromQuads(s.Pix, s.Stride)
	default:
		m.fromAny(src)
	}
	return m
}

// fromQuads reads rows of red, green, blue and opacity.
func (m *Image) fromQuads(pix []byte, stride int) {
	for y := range m.Height {
		row := pix[y*stride:][:4*m.Width]
		for x := range m.Width {
			q := row[4*x:][:4]
			m.put(y, x, q[0], q[1], q[2])
			if q[3] != 255 {
				m.onWhite(y, x, q[3])
			}
		}
	}
}

func (m *Image) put(y, x int, r, g, b byte) {
	p := m.Pix[3*(y*m.Width+x):][:3]
	p[0], p[1], p[2] = r, g, b
}

// onWhite lays the pixel at (y, x) over white with opacity a, rounded as PIL's
// paste rounds.
func (m *Image) onWhite(y, x int, a byte) {
	p := m.Pix[3*(y*m.Width+x):][:3]
	for c, v := range p {
		t := uint32(v)*uint32(a) + 255*(255-uint32(a)) + 128
		p[c] = byte((t + t>>8) >> 8)
	}
}

// fromAny reads any other image through its colour model, without multiplying
// colours by opacity on the way. 16-bit channels keep their high byte.
func (m *Image) fromAny(src image.Image) {
	b := src.Bounds()
	for y := range m.Height {
		for x := range m.Width {
			c := color.NRGBAModel.Convert(src.At(b.Min.X+x, b.Min.Y+y)).(color.NRGBA)
			m.put(y, x, c.R, c.G, c.B)
			if c.A != 255 {
				m.onWhite(y, x, c.A)
			}
		}
	}
}
