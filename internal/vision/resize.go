package vision

import "math"

// Image is a decoded picture: 8-bit RGB, row-major, three bytes a pixel.
type Image struct {
	Width, Height int
	Pix           []byte // [Height*Width*3]
}

// kernel holds, for every output position, which inputs it is made of.
type kernel struct {
	first   []int   // first input
	size    []int   // number of inputs
	weights []int32 // [len(first), width] fixed point
	width   int     // weights reserved for one position
	bits    uint    // binary digits behind the point
}

// cubic is Keys' filter with a = -0.5, as PIL and torch (with antialiasing) use.
func cubic(x float64) float64 {
	const a = -0.5
	x = math.Abs(x)
	switch {
	case x < 1:
		return ((a+2)*x-(a+3))*x*x + 1
	case x < 2:
		return (((x-5)*x+8)*x - 4) * a
	}
	return 0
}

// newKernel lays the cubic filter, widened by the factor of reduction, over in
// inputs at each of out positions. The weights are rounded to as many binary
// digits as the largest of them allows in a signed 16-bit number: that is what
// torch's 8-bit resize does, and so its results can be met to the bit.
func newKernel(in, out int) kernel {
	scale := float64(in) / float64(out)
	stretch := max(scale, 1)
	support := 2 * stretch
	k := kernel{width: int(math.Ceil(support))*2 + 1}
	exact := make([]float64, out*k.width)
	largest := 0.0
	for i := range out {
		center := scale * (float64(i) + 0.5)
		first := max(int(center-support+0.5), 0)
		size := min(min(int(center+support+0.5), in)-first, k.width)
		row, total := exact[i*k.width:], 0.0
		for j := range size {
			row[j] = cubic((float64(j) + (float64(first) - center) + 0.5) * (1 / stretch))
			total += row[j]
		}
		for j := range size {
			row[j] /= total
			largest = max(largest, row[j])
		}
		k.first, k.size = append(k.first, first), append(k.size, size)
	}
	for k.bits < 22 && int(0.5+largest*float64(int(1)<<(k.bits+1))) < 1<<15 {
		k.bits++
	}
	k.weights = make([]int32, len(exact))
	one := float64(int(1) << k.bits)
	for i, w := range exact {
		if w < 0 {
			k.weights[i] = int32(-0.5 + w*one)
		} else {
			k.weights[i] = int32(0.5 + w*one)
		}
	}
	return k
}

// sum applies the kernel's position i to every stride-th byte of src.
func (k *kernel) sum(i int, src []byte, stride int) byte {
	acc := int32(1) << (k.bits - 1)
	row := k.weights[i*k.width:]
	at := k.first[i] * stride
	for j := range k.size[i] {
		acc += row[j] * int32(src[at])
		at += stride
	}
	return byte(min(max(acc>>k.bits, 0), 255))
}

// Resize scales the image by the bicubic filter with antialiasing: rows first,
// then columns, rounded to 8 bits in between, as torchvision does for 8-bit
// images. An axis that keeps its length is not touched.
func (m *Image) Resize(height, width int) *Image {
	out := m
	if width != out.Width {
		k := newKernel(out.Width, width)
		next := &Image{width, out.Height, make([]byte, width*out.Height*3)}
		for y := range out.Height {
			src, dst := out.Pix[y*out.Width*3:(y+1)*out.Width*3], next.Pix[y*width*3:]
			for x := range width {
				for c := range 3 {
					dst[3*x+c] = k.sum(x, src[c:], 3)
				}
			}
		}
		out = next
	}
	if height != out.Height {
		k := newKernel(out.Height, height)
		stride := 3 * width
		next := &Image{width, height, make([]byte, stride*height)}
		acc := make([]int32, stride)
		for y := range height {
			k.sumRows(y, out.Pix, acc, next.Pix[y*stride:(y+1)*stride])
		}
		out = next
	}
	return out
}

// sumRows applies the kernel's position y to whole rows of len(dst) bytes; acc
// is scratch of the same length.
func (k *kernel) sumRows(y int, src []byte, acc []int32, dst []byte) {
	stride := len(dst)
	half := int32(1) << (k.bits - 1)
	for i := range acc {
		acc[i] = half
	}
	for j := range k.size[y] {
		w := k.weights[y*k.width+j]
		row := src[(k.first[y]+j)*stride:][:stride]
		for i, v := range row {
			acc[i] += w * int32(v)
		}
	}
	for i, v := range acc {
		dst[i] = byte(min(max(v>>k.bits, 0), 255))
	}
}

// Patches resizes the image by Qwen's rule, normalises it and cuts it up.
func (m *Image) Patches(c Config) (Patches, error) {
	height, width, err := c.Resized(m.Height, m.Width)
	if err != nil {
		return Patches{}, err
	}
	r := m.Resize(height, width)
	// (v/255 - mean) / std, with 255 moved to mean and std and everything in
	// float32, as transformers fuses it: only 3*256 values exist.
	var table [3][256]float32
	for ch := range 3 {
		mean, std := c.Mean[ch]*255, c.Std[ch]*255
		for v := range 256 {
			table[ch][v] = (float32(v) - mean) / std
		}
	}
	p, gh, gw := c.PatchSize, height/c.PatchSize, width/c.PatchSize
	out := Patches{Grid: [3]int{1, gh, gw},
		Pixels: make([]float32, 0, gh*gw*3*c.TemporalPatchSize*p*p)}
	for by := 0; by < gh; by += c.MergeSize {
		for bx := 0; bx < gw; bx += c.MergeSize {
			for i := range c.MergeSize * c.MergeSize {
				y, x := by+i/c.MergeSize, bx+i%c.MergeSize
				for ch := range 3 {
					out.Pixels = appendTile(out.Pixels, &table[ch], p, r.Pix[(y*p*width+x*p)*3+ch:], 3*width)
					for range c.TemporalPatchSize - 1 {
						out.Pixels = append(out.Pixels, out.Pixels[len(out.Pixels)-p*p:]...)
					}
				}
			}
		}
	}
	return out, nil
}

// appendTile appends side x side values of one channel; src begins at the first
// of them and has rows of stride bytes.
func appendTile(dst []float32, table *[256]float32, side int, src []byte, stride int) []float32 {
	for y := range side {
		for x := range side {
			dst = append(dst, table[src[y*stride+3*x]])
		}
	}
	return dst
}
