package vision_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/vision"
)

// chunk is a PNG chunk.
func chunk(name string, data []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	out = append(append(out, name...), data...)
	return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[4:]))
}

// exif is a TIFF block with nothing but an orientation.
func exif(orientation uint16, order binary.AppendByteOrder) []byte {
	head := "II*\x00"
	if order == binary.AppendByteOrder(binary.BigEndian) {
		head = "MM\x00*"
	}
	b := order.AppendUint32([]byte(head), 8)
	b = order.AppendUint16(b, 1)
	b = order.AppendUint16(order.AppendUint16(b, 0x0112), 3)
	b = order.AppendUint32(b, 1)
	b = order.AppendUint16(order.AppendUint16(b, orientation), 0)
	return order.AppendUint32(b, 0)
}

// pngWithExif puts a block behind the header of a PNG.
func pngWithExif(data, block []byte) []byte {
	const header = 8 + 25 // signature and IHDR
	return bytes.Join([][]byte{data[:header], chunk("eXIf", block), data[header:]}, nil)
}

// jpegWithExif puts a block behind the start of a JPEG.
func jpegWithExif(data, block []byte) []byte {
	body := append([]byte("Exif\x00\x00"), block...)
	segment := binary.BigEndian.AppendUint16([]byte{0xff, 0xe1}, uint16(len(body)+2))
	return bytes.Join([][]byte{data[:2], segment, body, data[2:]}, nil)
}

func decode(t *testing.T, data []byte) *vision.Image {
	t.Helper()
	m, err := vision.Decode(data, 0)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func at(m *vision.Image, x, y int) [3]byte {
	return [3]byte(m.Pix[3*(y*m.Width+x):])
}

func TestFormats(t *testing.T) {
	src := pattern(21, 13)
	for _, format := range []string{"png", "bmp", "tiff", "jpeg"} {
		m := decode(t, encoded(t, src, format))
		if m.Width != 21 || m.Height != 13 {
			t.Fatalf("%s: %d x %d", format, m.Width, m.Height)
		}
		for y := range 13 {
			for x := range 21 {
				want, got := src.NRGBAAt(x, y), at(m, x, y)
				if format == "jpeg" {
					continue // lossy: sizes only; pixels in tests against Pillow
				}
				if got != [3]byte{want.R, want.G, want.B} {
					t.Fatalf("%s (%d, %d): %v, want %v", format, x, y, got, want)
				}
			}
		}
	}
	m := decode(t, webpFile)
	if m.Width != 3 || m.Height != 2 || at(m, 2, 1) != [3]byte{255, 0, 0} {
		t.Errorf("WebP: %d x %d, %v", m.Width, m.Height, at(m, 2, 1))
	}
}

func TestGreyPaletteAndDepth(t *testing.T) {
	grey := image.NewGray(image.Rect(0, 0, 4, 1))
	copy(grey.Pix, []byte{0, 1, 200, 255})
	deep := image.NewNRGBA64(image.Rect(0, 0, 1, 1))
	deep.SetNRGBA64(0, 0, color.NRGBA64{R: 0x80ff, G: 0x1200, B: 0xffff, A: 0xffff})
	palette := image.NewPaletted(image.Rect(0, 0, 2, 1), color.Palette{color.NRGBA{9, 8, 7, 255}, color.NRGBA{50, 0, 0, 0}})
	palette.Pix[1] = 1
	if m := decode(t, encoded(t, grey, "png")); at(m, 2, 0) != [3]byte{200, 200, 200} {
		t.Errorf("grey %v", m.Pix)
	}
	if m := decode(t, encoded(t, deep, "png")); at(m, 0, 0) != [3]byte{0x80, 0x12, 0xff} {
		t.Errorf("16 bits %v", m.Pix)
	}
	if m := decode(t, encoded(t, palette, "png")); at(m, 0, 0) != [3]byte{9, 8, 7} || at(m, 1, 0) != [3]byte{255, 255, 255} {
		t.Errorf("palette %v", m.Pix)
	}
}

func TestTransparencyLiesOnWhite(t *testing.T) {
	m := image.NewNRGBA(image.Rect(0, 0, 3, 1))
	m.SetNRGBA(0, 0, color.NRGBA{10, 20, 30, 0})
	m.SetNRGBA(1, 0, color.NRGBA{10, 20, 30, 128})
	m.SetNRGBA(2, 0, color.NRGBA{10, 20, 30, 255})
	got := decode(t, encoded(t, m, "png"))
	for x, want := range [][3]byte{{255, 255, 255}, {132, 137, 142}, {10, 20, 30}} {
		if at(got, x, 0) != want {
			t.Errorf("pixel %d is %v, want %v", x, at(got, x, 0), want)
		}
	}
}

func TestOrientation(t *testing.T) {
	// Of a picture 3 wide and 2 high: which source pixel comes to the upper left
	// corner, and which next to it on the right.
	src := pattern(3, 2)
	plain := encoded(t, src, "png")
	for orientation, want := range map[uint16][2][2]int{
		1: {{0, 0}, {1, 0}}, 2: {{2, 0}, {1, 0}}, 3: {{2, 1}, {1, 1}}, 4: {{0, 1}, {1, 1}},
		5: {{0, 0}, {0, 1}}, 6: {{0, 1}, {0, 0}}, 7: {{2, 1}, {2, 0}}, 8: {{2, 0}, {2, 1}},
	} {
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			data := pngWithExif(plain, exif(orientation, order))
			m := decode(t, data)
			turned := orientation >= 5
			if (m.Width == 2) != turned || (m.Height == 3) != turned {
				t.Fatalf("orientation %d: %d x %d", orientation, m.Width, m.Height)
			}
			for i, from := range want {
				c := src.NRGBAAt(from[0], from[1])
				if at(m, i, 0) != [3]byte{c.R, c.G, c.B} {
					t.Errorf("orientation %d: pixel %d is %v, want that at %v", orientation, i, at(m, i, 0), from)
				}
			}
			grid, err := vision.Measure(pngWithExif(encoded(t, pattern(200, 60), "png"), exif(orientation, order)), vision.DefaultConfig())
			if err != nil || (grid[1] > grid[2]) != turned {
				t.Errorf("orientation %d: grid %v, %v", orientation, grid, err)
			}
		}
	}
	if m := decode(t, jpegWithExif(encoded(t, src, "jpeg"), exif(6, binary.BigEndian))); m.Width != 2 {
		t.Errorf("JPEG: %d x %d", m.Width, m.Height)
	}
	// A broken block does not spoil the picture.
	good := exif(6, binary.LittleEndian)
	for i := range good {
		m := decode(t, pngWithExif(plain, good[:i]))
		if m.Width*m.Height != 6 {
			t.Errorf("block cut at %d: %d x %d", i, m.Width, m.Height)
		}
	}
	for _, v := range []uint16{0, 9, 65535} {
		if m := decode(t, pngWithExif(plain, exif(v, binary.LittleEndian))); m.Width != 3 {
			t.Errorf("orientation %d turned the picture", v)
		}
	}
}

func TestBrokenFilesAreRefused(t *testing.T) {
	if _, err := vision.Decode(nil, 0); !errors.Is(err, vision.ErrImage) || !strings.Contains(err.Error(), "empty") {
		t.Errorf("no bytes: %v", err)
	}
	if _, err := vision.Decode([]byte("GIF89a....."), 0); !errors.Is(err, vision.ErrImage) || !strings.Contains(err.Error(), "47 49 46 38") {
		t.Errorf("GIF: %v", err)
	}
	for _, format := range []string{"png", "bmp", "tiff", "jpeg"} {
		data := encoded(t, pattern(40, 30), format)
		for _, share := range []float64{0.01, 0.1, 0.5, 0.9} {
			cut := data[:int(float64(len(data))*share)]
			if _, err := vision.Decode(cut, 0); !errors.Is(err, vision.ErrImage) {
				t.Errorf("%s cut at %v: %v", format, share, err)
			}
		}
	}
}

func TestWebPFrameMustFitItsCanvas(t *testing.T) {
	// A canvas of 3 x 2 with the frame of another size behind it.
	canvas := []byte("VP8X\x0a\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x01\x00\x00")
	for size, good := range map[uint32]bool{2 | 1<<14: true, 2 | 9<<14: false, 0x3fff | 0x3fff<<14: false} {
		frame := bytes.Clone(webpFile[12:])
		binary.LittleEndian.PutUint32(frame[9:], size|binary.LittleEndian.Uint32(frame[9:])&^(1<<28-1))
		body := append(append([]byte("WEBP"), canvas...), frame...)
		data := append(binary.LittleEndian.AppendUint32([]byte("RIFF"), uint32(len(body))), body...)
		_, err := vision.Measure(data, vision.DefaultConfig())
		if good != (err == nil) || err != nil && !strings.Contains(err.Error(), "on a canvas of 3 x 2") {
			t.Errorf("frame size %x: %v", size, err)
		}
	}
}

// pngHeader claims a size and has no pixels.
func pngHeader(w, h uint32) []byte {
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, w), h)
	return append([]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", append(b, 8, 2, 0, 0, 0))...)
}

func TestBombsAreRefusedByTheirHeader(t *testing.T) {
	for name, data := range map[string][]byte{
		"PNG": pngHeader(50_000, 50_000),
		"BMP": func() []byte {
			b := encoded(t, pattern(2, 2), "bmp")
			binary.LittleEndian.PutUint32(b[18:], 50_000)
			binary.LittleEndian.PutUint32(b[22:], 50_000)
			return b
		}(),
		"JPEG": func() []byte {
			b := encoded(t, pattern(2, 2), "jpeg")
			i := bytes.Index(b, []byte{0xff, 0xc0})
			binary.BigEndian.PutUint16(b[i+5:], 60_000)
			binary.BigEndian.PutUint16(b[i+7:], 60_000)
			return b
		}(),
	} {
		_, err := vision.Decode(data, 0)
		if !errors.Is(err, vision.ErrTooLarge) || !errors.Is(err, vision.ErrImage) || !strings.Contains(err.Error(), "000 x ") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := vision.Measure(data, vision.DefaultConfig()); !errors.Is(err, vision.ErrTooLarge) {
			t.Errorf("%s measured: %v", name, err)
		}
	}
	data := encoded(t, pattern(10, 10), "png")
	if _, err := vision.Decode(data, 99); !errors.Is(err, vision.ErrTooLarge) {
		t.Errorf("100 pixels, 99 allowed: %v", err)
	}
	if _, err := vision.Decode(data, 100); err != nil {
		t.Errorf("100 pixels, 100 allowed: %v", err)
	}
	c := vision.DefaultConfig()
	c.MaxSourcePixels = 99
	if _, err := vision.Preprocess(data, c); !errors.Is(err, vision.ErrTooLarge) {
		t.Errorf("Preprocess: %v", err)
	}
}

// FuzzDecode reads any bytes: an error that wraps ErrImage, or a picture of the
// size that its header says.
func FuzzDecode(f *testing.F) {
	for _, format := range []string{"png", "bmp", "tiff", "jpeg"} {
		f.Add(encoded(f, pattern(9, 6), format))
	}
	f.Add(webpFile)
	f.Add(progressive(f))
	f.Add(pngWithExif(encoded(f, pattern(3, 2), "png"), exif(6, binary.BigEndian)))
	f.Add(jpegWithExif(encoded(f, pattern(3, 2), "jpeg"), exif(8, binary.LittleEndian)))
	f.Add(pngHeader(4, 4))
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 16
		m, err := vision.Decode(data, limit)
		if err != nil {
			if !errors.Is(err, vision.ErrImage) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if m.Width*m.Height > limit || len(m.Pix) != 3*m.Width*m.Height {
			t.Fatalf("%d x %d, %d bytes", m.Width, m.Height, len(m.Pix))
		}
		c := vision.DefaultConfig()
		c.MaxPixels = 1 << 16
		grid, err := vision.Measure(data, c)
		p, errP := vision.Preprocess(data, c)
		if (err == nil) != (errP == nil) || p.Grid != grid && err == nil {
			t.Fatalf("measured %v, %v; prepared %v, %v", grid, err, p.Grid, errP)
		}
	})
}
