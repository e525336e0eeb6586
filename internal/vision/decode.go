package vision

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"

	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
	"golang.org/x/image/webp"
)

// ErrImage is wrapped by every error about the bytes of an image.
var ErrImage = errors.New("bad image")

// ErrTooLarge is wrapped, besides ErrImage, when an image has more pixels than
// allowed; its pixels were not decoded.
var ErrTooLarge = errors.New("too many pixels")

// header is what a file says about its image before any pixel is decoded.
type header struct {
	format        string
	width, height int // as displayed: orientation applied
	orientation   int // EXIF, 1 to 8
	decode        func(data []byte) (image.Image, error)
}

// format is one kind of file.
type format struct {
	name    string
	matches func(data []byte) bool
	config  func(data []byte) (image.Config, error)
	decode  func(data []byte) (image.Image, error)
	exif    func(data []byte) []byte // the TIFF block that holds the orientation; may be nil
}

// prefix makes a matcher of files that begin with one of these.
func prefix(heads ...string) func([]byte) bool {
	return func(data []byte) bool {
		for _, h := range heads {
			if bytes.HasPrefix(data, []byte(h)) {
				return true
			}
		}
		return false
	}
}

// formats returns the kinds of files that are read.
func formats() []format {
	return []format{
		{"JPEG", prefix("\xff\xd8\xff"),
			func(d []byte) (image.Config, error) { return jpeg.DecodeConfig(bytes.NewReader(d)) },
			decodeJPEG, jpegExif},
		{"PNG", prefix("\x89PNG\r\n\x1a\n"),
			func(d []byte) (image.Config, error) { return png.DecodeConfig(bytes.NewReader(d)) },
			func(d []byte) (image.Image, error) { return png.Decode(bytes.NewReader(d)) }, pngExif},
		{"WebP", func(d []byte) bool { return len(d) >= 12 && string(d[:4]) == "RIFF" && string(d[8:12]) == "WEBP" },
			webpConfig,
			func(d []byte) (image.Image, error) { return webp.Decode(bytes.NewReader(d)) }, webpExif},
		{"BMP", prefix("BM"),
			func(d []byte) (image.Config, error) { return bmp.DecodeConfig(bytes.NewReader(d)) },
			func(d []byte) (image.Image, error) { return bmp.Decode(bytes.NewReader(d)) }, nil},
		{"TIFF", prefix("II*\x00", "MM\x00*"),
			func(d []byte) (image.Config, error) { return tiff.DecodeConfig(bytes.NewReader(d)) },
			func(d []byte) (image.Image, error) { return tiff.Decode(bytes.NewReader(d)) },
			func(d []byte) []byte { return d }},
	}
}

// sniff recognises the format by its first bytes, reads the header and refuses
// an image of more than limit pixels (0: DefaultMaxSourcePixels).
func sniff(data []byte, limit int) (header, error) {
	if limit <= 0 {
		limit = DefaultMaxSourcePixels
	}
	if len(data) == 0 {
		return header{}, fmt.Errorf("%w: the file is empty", ErrImage)
	}
	for _, f := range formats() {
		if !f.matches(data) {
			continue
		}
		c, err := guarded(f.config, data)
		if err != nil {
			return header{}, fmt.Errorf("%w: %s header: %w", ErrImage, f.name, err)
		}
		if c.Width < 1 || c.Height < 1 {
			return header{}, fmt.Errorf("%w: %s of %d x %d pixels", ErrImage, f.name, c.Width, c.Height)
		}
		if int64(c.Width)*int64(c.Height) > int64(limit) {
			return header{}, fmt.Errorf("%w: %s of %d x %d pixels: %w, at most %d are decoded",
				ErrImage, f.name, c.Width, c.Height, ErrTooLarge, limit)
		}
		h := header{format: f.name, width: c.Width, height: c.Height, orientation: 1, decode: f.decode}
		if f.exif != nil {
			h.orientation = orientation(f.exif(data))
		}
		if h.orientation >= 5 {
			h.width, h.height = h.height, h.width
		}
		return h, nil
	}
	return header{}, fmt.Errorf("%w: not a JPEG, PNG, WebP, BMP or TIFF file (it begins with % x)", ErrImage, data[:min(len(data), 8)])
}

// Decode reads an image file as 8-bit RGB, turned as its EXIF orientation says,
// with transparent parts on white: what vLLM shows the model. Files of more than
// maxPixels pixels (0: DefaultMaxSourcePixels) are refused before any pixel is
// decoded; all errors wrap ErrImage.
func Decode(data []byte, maxPixels int) (*Image, error) {
	h, err := sniff(data, maxPixels)
	if err != nil {
		return nil, err
	}
	decoded, err := guarded(h.decode, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s of %d x %d pixels: %w", ErrImage, h.format, h.width, h.height, err)
	}
	img := toRGB(decoded, h.format).turn(h.orientation)
	if img.Width != h.width || img.Height != h.height {
		return nil, fmt.Errorf("%w: %s header says %d x %d pixels, its data %d x %d",
			ErrImage, h.format, h.width, h.height, img.Width, img.Height)
	}
	return img, nil
}

// guarded calls a decoder of a library and turns its panic, should a hostile file
// provoke one, into an error.
func guarded[T any](decode func([]byte) (T, error), data []byte) (out T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder failed: %v", r)
		}
	}()
	return decode(data)
}

// turn applies an EXIF orientation.
func (m *Image) turn(orientation int) *Image {
	if orientation < 2 || orientation > 8 {
		return m
	}
	w, h := m.Width, m.Height
	if orientation >= 5 {
		w, h = h, w
	}
	out := &Image{w, h, make([]byte, len(m.Pix))}
	for y := range h {
		for x := range w {
			sx, sy := x, y // where the pixel at (x, y) comes from
			if orientation >= 5 {
				sx, sy = y, x
			}
			switch orientation {
			case 2, 7, 3, 8:
				sx = m.Width - 1 - sx
			}
			switch orientation {
			case 4, 3, 7, 6:
				sy = m.Height - 1 - sy
			}
			copy(out.Pix[3*(y*w+x):][:3], m.Pix[3*(sy*m.Width+sx):][:3])
		}
	}
	return out
}
