package vision

import "image"

// Colour planes of half resolution are widened as the decoders of PIL do it
// ("fancy upsampling", a triangle filter), so that a model sees the same pixels
// whichever program decoded the file.

// fromJPEG converts full-range YCbCr with libjpeg's fixed-point constants.
func (m *Image) fromJPEG(s *image.YCbCr) {
	ratio := s.SubsampleRatio
	cw, ch := chromaSize(m.Width, m.Height, ratio)
	cb, cr := make([]byte, m.Width+1), make([]byte, m.Width+1)
	line := make([]int, cw)
	for y := range m.Height {
		widenRow(cb, s.Cb, s.CStride, cw, ch, y, ratio, line)
		widenRow(cr, s.Cr, s.CStride, cw, ch, y, ratio, line)
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

// chromaSize is the size of a colour plane.
func chromaSize(w, h int, ratio image.YCbCrSubsampleRatio) (int, int) {
	switch ratio {
	case image.YCbCrSubsampleRatio422:
		return (w + 1) / 2, h
	case image.YCbCrSubsampleRatio420:
		return (w + 1) / 2, (h + 1) / 2
	case image.YCbCrSubsampleRatio440:
		return w, (h + 1) / 2
	case image.YCbCrSubsampleRatio411:
		return (w + 3) / 4, h
	case image.YCbCrSubsampleRatio410:
		return (w + 3) / 4, (h + 1) / 2
	}
	return w, h
}

// widenRow writes row y of a colour plane of cw x ch samples at full
// resolution. line is scratch of cw numbers.
func widenRow(dst, src []byte, stride, cw, ch, y int, ratio image.YCbCrSubsampleRatio, line []int) {
	row := func(i int) []byte { return src[min(max(i, 0), ch-1)*stride:][:cw] }
	switch {
	case ratio == image.YCbCrSubsampleRatio444:
		copy(dst, row(y))
	case ratio == image.YCbCrSubsampleRatio440:
		near, far := row(y/2), row(y/2-1+y%2*2)
		for x := range cw {
			dst[x] = byte((3*int(near[x]) + int(far[x]) + 1 + y%2) >> 2)
		}
	case ratio == image.YCbCrSubsampleRatio420 && cw > 2:
		near, far := row(y/2), row(y/2-1+y%2*2)
		for x := range cw {
			line[x] = 3*int(near[x]) + int(far[x])
		}
		widenLine(dst, line, 4, 8, 7)
	case ratio == image.YCbCrSubsampleRatio422 && cw > 2:
		for x, v := range row(y) {
			line[x] = int(v)
		}
		widenLine(dst, line, 2, 1, 2)
	default: // narrow or uncommon: every sample as it is
		wide, high := 1, 1
		switch ratio {
		case image.YCbCrSubsampleRatio420:
			wide, high = 2, 2
		case image.YCbCrSubsampleRatio422:
			wide = 2
		case image.YCbCrSubsampleRatio411:
			wide = 4
		case image.YCbCrSubsampleRatio410:
			wide, high = 4, 2
		}
		near := row(y / high)
		for x := range dst {
			dst[x] = near[min(x/wide, cw-1)]
		}
	}
}

// widenLine doubles a line: every output is three parts of its nearest sample
// and one of the next nearest; left and right are what is added before shifting
// on either side, so that rounding does not drift.
func widenLine(dst []byte, line []int, shift uint, left, right int) {
	last := len(line) - 1
	for i, v := range line {
		before, behind := line[max(i-1, 0)], line[min(i+1, last)]
		even, odd := (3*v+before+left)>>shift, (3*v+behind+right)>>shift
		if 2*i < len(dst) {
			dst[2*i] = byte(even)
		}
		if 2*i+1 < len(dst) {
			dst[2*i+1] = byte(odd)
		}
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
