package vision

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
)

// The JPEG standard leaves the rounding of the inverse cosine transform open,
// and Go's package rounds otherwise than libjpeg in a few percent of the
// samples: by 1 only, but a model notices (5e-3 nats were measured). Most images
// are JPEG, so grey and YCbCr files are decoded here with libjpeg's integer
// arithmetic, to the bit; what is rarer (CMYK, RGB, odd sampling) goes to Go's.

// Markers.
const (
	sof0  = 0xc0 // baseline
	sof1  = 0xc1 // extended sequential
	sof2  = 0xc2 // progressive
	dht   = 0xc4
	rst0  = 0xd0
	eoi   = 0xd9
	sos   = 0xda
	dqt   = 0xdb
	dri   = 0xdd
	app0  = 0xe0
	app14 = 0xee
)

// maxScans bounds the work that a small progressive file can ask for.
const maxScans = 200

// errOtherJPEG says that a file is none of those decoded here.
var errOtherJPEG = errors.New("not a grey or YCbCr JPEG")

// decodeJPEG decodes a JPEG as an *image.Gray, *image.YCbCr or, through Go's
// package, anything else.
func decodeJPEG(data []byte) (image.Image, error) {
	d := jpegFile{data: data, pos: 2, transform: -1}
	img, err := d.decode()
	if errors.Is(err, errOtherJPEG) {
		return jpeg.Decode(bytes.NewReader(data))
	}
	return img, err
}

// jpegFile is the state of decoding one file.
type jpegFile struct {
	data        []byte
	pos         int
	width       int
	height      int
	progressive bool
	jfif        bool
	transform   int // of the Adobe segment, -1 without one
	restart     int // MCUs between restart markers, 0 for none
	quant       [4][64]int32
	dc, ac      [4]huffman
	components  []component
	wide, high  int // largest sampling factors
	scans       int
}

// component is one colour plane.
type component struct {
	id, h, v, table int
	seen            bool // in some scan
	columns, rows   int  // blocks that hold samples
	stride          int  // blocks in a row, padded to whole MCUs
	pix             []byte
	coefficients    []int16 // [rows*stride*64] in natural order; progressive only
	predicted       int32   // last DC value
}

// decode reads all segments.
func (d *jpegFile) decode() (image.Image, error) {
	for {
		marker, body, err := d.segment()
		if err != nil {
			return nil, err
		}
		switch marker {
		case sof0, sof1, sof2:
			d.progressive = marker == sof2
			err = d.frame(body)
		case dht:
			err = d.huffmanTables(body)
		case dqt:
			err = d.quantTables(body)
		case dri:
			if len(body) != 2 {
				return nil, errors.New("restart interval of the wrong length")
			}
			d.restart = int(binary.BigEndian.Uint16(body))
		case app0:
			d.jfif = d.jfif || bytes.HasPrefix(body, []byte("JFIF\x00"))
		case app14:
			if len(body) >= 12 && bytes.HasPrefix(body, []byte("Adobe")) {
				d.transform = int(body[11])
			}
		case sos:
			if err = d.scan(body); err == nil && d.complete() {
				return d.picture()
			}
		case eoi:
			return d.picture()
		default:
			if marker >= 0xc3 && marker <= 0xcf && marker != 0xc8 && marker != 0xcc {
				return nil, errOtherJPEG // lossless, hierarchical or arithmetic
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// complete tells whether nothing is left to read: a sequential file has each
// component in one scan, a progressive one ends with its EOI.
func (d *jpegFile) complete() bool {
	for _, c := range d.components {
		if !c.seen {
			return false
		}
	}
	return !d.progressive
}

// segment reads the next marker and what belongs to it.
func (d *jpegFile) segment() (marker byte, body []byte, err error) {
	// Bytes between segments are skipped, as libjpeg does.
	for d.pos+1 < len(d.data) && (d.data[d.pos] != 0xff || d.data[d.pos+1] == 0 || d.data[d.pos+1] == 0xff) {
		d.pos++
	}
	if d.pos+1 >= len(d.data) {
		return 0, nil, errors.New("unexpected end of file")
	}
	marker = d.data[d.pos+1]
	d.pos += 2
	if marker == eoi || marker >= rst0 && marker < rst0+8 || marker == 0xd8 || marker == 1 {
		return marker, nil, nil
	}
	if d.pos+2 > len(d.data) {
		return 0, nil, errors.New("unexpected end of file")
	}
	size := int(binary.BigEndian.Uint16(d.data[d.pos:]))
	if size < 2 || d.pos+size > len(d.data) {
		return 0, nil, fmt.Errorf("segment %#x of %d bytes does not fit the file", marker, size)
	}
	body = d.data[d.pos+2 : d.pos+size]
	d.pos += size
	return marker, body, nil
}

// frame reads the header of the picture and makes its planes.
func (d *jpegFile) frame(body []byte) error {
	if d.components != nil {
		return errors.New("two frames")
	}
	if len(body) < 6 || len(body) != 6+3*int(body[5]) {
		return errors.New("frame header of the wrong length")
	}
	d.height, d.width = int(binary.BigEndian.Uint16(body[1:])), int(binary.BigEndian.Uint16(body[3:]))
	if n := body[5]; body[0] != 8 || n != 1 && n != 3 || d.width == 0 || d.height == 0 {
		return errOtherJPEG
	}
	for b := body[6:]; len(b) > 0; b = b[3:] {
		c := component{id: int(b[0]), h: int(b[1] >> 4), v: int(b[1] & 15), table: int(b[2])}
		if c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4 || c.table > 3 {
			return fmt.Errorf("component %d has sampling %d x %d and table %d", c.id, c.h, c.v, c.table)
		}
		if len(body) == 9 {
			c.h, c.v = 1, 1 // a single component is never subsampled
		}
		d.wide, d.high = max(d.wide, c.h), max(d.high, c.v)
		d.components = append(d.components, c)
	}
	if d.isRGB() || d.ratio() < 0 {
		return errOtherJPEG
	}
	for i := range d.components {
		c := &d.components[i]
		c.columns = blocks(d.width*c.h, d.wide)
		c.rows = blocks(d.height*c.v, d.high)
		c.stride = blocks(d.width, d.wide) * c.h
		padded := blocks(d.height, d.high) * c.v
		c.pix = make([]byte, 64*c.stride*padded)
		if d.progressive {
			c.coefficients = make([]int16, 64*c.stride*padded)
		}
	}
	return nil
}

// blocks is the number of blocks of 8 that n/over samples take.
func blocks(n, over int) int { return (n + 8*over - 1) / (8 * over) }

// isRGB tells, as libjpeg guesses it, whether three components are not YCbCr.
func (d *jpegFile) isRGB() bool {
	if len(d.components) != 3 || d.jfif {
		return false
	}
	if d.transform >= 0 {
		return d.transform == 0
	}
	c := d.components
	return c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B'
}

// ratio is Go's name of the sampling, or -1 if it has none.
func (d *jpegFile) ratio() image.YCbCrSubsampleRatio {
	c := d.components
	if len(c) == 1 {
		return image.YCbCrSubsampleRatio444
	}
	if c[0].h != d.wide || c[0].v != d.high || c[1].h != c[2].h || c[1].v != c[2].v || d.wide%c[1].h != 0 || d.high%c[1].v != 0 {
		return -1
	}
	switch [2]int{d.wide / c[1].h, d.high / c[1].v} {
	case [2]int{1, 1}:
		return image.YCbCrSubsampleRatio444
	case [2]int{2, 1}:
		return image.YCbCrSubsampleRatio422
	case [2]int{2, 2}:
		return image.YCbCrSubsampleRatio420
	case [2]int{1, 2}:
		return image.YCbCrSubsampleRatio440
	}
	return -1
}

// picture returns the planes as an image.
func (d *jpegFile) picture() (image.Image, error) {
	if d.components == nil {
		return nil, errors.New("no frame before the end of the image")
	}
	for i := range d.components {
		c := &d.components[i]
		if !c.seen {
			return nil, fmt.Errorf("component %d has no data", c.id)
		}
		if d.progressive {
			for block := range len(c.coefficients) / 64 {
				y, x := block/c.stride, block%c.stride
				inverse((*[64]int16)(c.coefficients[64*block:]), &d.quant[c.table], c.pix[64*y*c.stride+8*x:], 8*c.stride)
			}
		}
	}
	c, bounds := d.components, image.Rect(0, 0, d.width, d.height)
	if len(c) == 1 {
		return &image.Gray{Pix: c[0].pix, Stride: 8 * c[0].stride, Rect: bounds}, nil
	}
	return &image.YCbCr{Y: c[0].pix, Cb: c[1].pix, Cr: c[2].pix, YStride: 8 * c[0].stride, CStride: 8 * c[1].stride,
		SubsampleRatio: d.ratio(), Rect: bounds}, nil
}
