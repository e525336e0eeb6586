package vision

import "image"

// Colour planes of half resolution are widened as the decoders of PIL do it
// ("fancy upsampling", a triangle filter), so that a model sees the same pixels
// whichever program decoded the file.

// fromJPEG converts full-range YCbCr with libjpeg's fixed-point constants.
func (m *Image) fromJPEG(s *image.YCbCr) {
	blue, red := newPlane(s, s.Cb), newPlane(s, s.Cr)
	cb, cr := make([]byte, m.Width), make([]byte, m.Width)
	for y := range m.Height {
		blue.widen(cb, y)
		red.widen(cr, y)
		luma := s.Y[y*s.YStride:]
		for x := range m.Width {
			// 16 binary digits; the halves are those of libjpeg's tables.
			u, v, yy := int(cb[x])-128, int(cr[x])-128, int(luma[x])
			r := yy + (91881*v+32768)>>16
			g := yy + (-22554*u-46802*v+32768)>>16
			b := yy + (116130*u+32768)>>16
			m.put(y, x, clamp(r), clamp(g), clamp(b))
		}
	}
}

func clamp(v int) byte { return byte(min(max(v, 0), 255)) }

// plane is a colour plane that may be coarser than the picture.
type plane struct {
	pix           []byte
	stride        int
	width, height int   // in samples
	wide, high    int   // pixels that a sample covers
	line          []int // scratch, one row
}

// newPlane describes one of the colour planes of a picture.
func newPlane(s *image.YCbCr, pix []byte) *plane {
	p := &plane{pix: pix, stride: s.CStride, wide: 1, high: 1}
	switch s.SubsampleRatio {
	case image.YCbCrSubsampleRatio422:
		p.wide = 2
	case image.YCbCrSubsampleRatio420:
		p.wide, p.high = 2, 2
	case image.YCbCrSubsampleRatio440:
		p.high = 2
	case image.YCbCrSubsampleRatio411:
		p.wide = 4
	case image.YCbCrSubsampleRatio410:
		p.wide, p.high = 4, 2
	}
	p.width, p.height = (s.Rect.Dx()+p.wide-1)/p.wide, (s.Rect.Dy()+p.high-1)/p.high
	p.line = make([]int, p.width)
	return p
}

// row is row i, the nearest one when i lies outside.
func (p *plane) row(i int) []byte {
	return p.pix[min(max(i, 0), p.height-1)*p.stride:][:p.width]
}

// widen writes row y of the picture.
func (p *plane) widen(dst []byte, y int) {
	near, far := p.row(y/p.high), p.row(y/p.high-1+y%2*2)
	switch {
	case p.wide == 1 && p.high == 1:
		copy(dst, near)
	case p.wide == 1: // between two rows
		for x := range dst {
			dst[x] = byte((3*int(near[x]) + int(far[x]) + 1 + y%2) >> 2)
		}
	case p.wide == 2 && p.high == 2 && p.width > 2: // between two rows and two columns
		for x := range p.line {
			p.line[x] = 3*int(near[x]) + int(far[x])
		}
		widenLine(dst, p.line, 4, [2]int{8, 7})
	case p.wide == 2 && p.high == 1 && p.width > 2: // between two columns
		for x, v := range near {
			p.line[x] = int(v)
		}
		widenLine(dst, p.line, 2, [2]int{1, 2})
	default: // narrow or uncommon: every sample as it is
		for x := range dst {
			dst[x] = near[x/p.wide]
		}
	}
}

// widenLine doubles a line: every output is three parts of its nearest sample
// and one of the next nearest, shifted; half is what is added before shifting on
// the left and on the right of a sample, so that rounding does not drift.
func widenLine(dst []byte, line []int, shift uint, half [2]int) {
	last := len(line) - 1
	for x := range dst {
		i := x / 2
		next := line[min(max(i-1+x%2*2, 0), last)]
		dst[x] = byte((3*line[i] + next + half[x%2]) >> shift)
	}
}

// fromWebP converts studio-range YCbCr 4:2:0 with libwebp's constants and
// upsampling.
func (m *Image) fromWebP(s *image.YCbCr) {
	cw, ch := (m.Width+1)/2, (m.Height+1)/2
	u, v := make([]byte, m.Width), make([]byte, m.Width)
	for y := range m.Height {
		near, far := y/2, min(max(y/2-1+y%2*2, 0), ch-1)
		webpRow(u, s.Cb[near*s.CStride:][:cw], s.Cb[far*s.CStride:][:cw])
		webpRow(v, s.Cr[near*s.CStride:][:cw], s.Cr[far*s.CStride:][:cw])
		for x := range m.Width {
			luma, cb, cr := int(s.Y[y*s.YStride+x]), int(u[x]), int(v[x])
			l := luma * 19077 >> 8
			m.put(y, x, webpClip(l+cr*26149>>8-14234),
				webpClip(l-cb*6419>>8-cr*13320>>8+8708), webpClip(l+cb*33050>>8-17685))
		}
	}
}

func webpClip(v int) byte { return clamp(v >> 6) }

// webpRow mixes four samples at 9:3:3:1 in libwebp's two roundings.
func webpRow(dst, near, far []byte) {
	for x := range dst {
		i := x / 2
		j := i - 1 + x%2*2 // the other column
		if x == 0 || x == len(dst)-1 && x%2 == 1 {
			dst[x] = byte((3*int(near[i]) + int(far[i]) + 2) >> 2)
			continue
		}
		a, b, c, d := int(near[i]), int(near[j]), int(far[i]), int(far[j])
		sum := a + b + c + d + 8
		diagonal := (sum + 2*(b+c)) >> 3
		dst[x] = byte((diagonal + a) >> 1)
	}
}
