package dataset

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"image"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	_ "image/jpeg" // decoders register themselves
	_ "image/png"

	_ "golang.org/x/image/bmp"
	_ "golang.org/x/image/tiff"
	_ "golang.org/x/image/webp"
)

// Limits bounds what an image may be before it is decoded.
type Limits struct {
	// Pixels is the largest width times height; default 100 million. A file that
	// claims more is a decompression bomb.
	Pixels int
	// Bytes is the largest encoded size; default 64 MiB.
	Bytes int64
}

func (l Limits) withDefaults() Limits {
	if l.Pixels == 0 {
		l.Pixels = 100_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 64 << 20
	}
	return l
}

// inspect checks an encoded image without decoding its pixels: known type,
// sane size, and an end marker where the format has one. It returns the media
// type. Errors wrap ErrImage.
func inspect(data []byte, limits Limits) (mediaType string, err error) {
	if len(data) == 0 {
		return "", fmt.Errorf("%w: 0 bytes", ErrImage)
	}
	if int64(len(data)) > limits.Bytes {
		return "", fmt.Errorf("%w: %d bytes, at most %d", ErrImage, len(data), limits.Bytes)
	}
	config, format, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return "", fmt.Errorf("%w: %d bytes that are no JPEG, PNG, WebP, BMP or TIFF: %w", ErrImage, len(data), err)
	}
	if config.Width < 1 || config.Height < 1 || config.Width > limits.Pixels/config.Height {
		return "", fmt.Errorf("%w: %s of %d x %d pixels, at most %d in all", ErrImage, format, config.Width, config.Height, limits.Pixels)
	}
	if !ended(data, format) {
		return "", fmt.Errorf("%w: %s of %d bytes is truncated", ErrImage, format, len(data))
	}
	return "image/" + format, nil
}

// ended looks for the end marker of formats that have one. JPEG files in the
// wild carry bytes after it, so their last kilobyte is searched.
func ended(data []byte, format string) bool {
	tail := data[max(0, len(data)-1024):]
	switch format {
	case "jpeg":
		return bytes.Contains(tail, []byte{0xFF, 0xD9})
	case "png":
		return bytes.Contains(tail, []byte("IEND"))
	case "webp": // RIFF: bytes 4 to 7 are the length of what follows them
		size := int(data[4]) | int(data[5])<<8 | int(data[6])<<16 | int(data[7])<<24
		return size+8 <= len(data)
	case "bmp":
		size := int(data[2]) | int(data[3])<<8 | int(data[4])<<16 | int(data[5])<<24
		return size <= len(data)
	}
	return true
}

// imageResolver turns an image reference of a record into bytes.
type imageResolver struct {
	root   string  // directory that relative paths start from
	lookup *keyed  // CSV of base64 images by key; nil without one
	limits Limits  // of one image
	rows   rowRefs // images of other rows of the same file; nil except for TSV
}

// rowRefs finds the image cell of another row by its index value.
type rowRefs func(key string) (cell string, ok bool, err error)

// bytes resolves ref: a data URL, a key of the image CSV, an existing file, the
// index of another row, or base64. The first that fits counts.
func (r *imageResolver) bytes(ref string) ([]byte, error) {
	ref = strings.TrimSpace(ref)
	switch {
	case ref == "":
		return nil, fmt.Errorf("%w: empty reference", ErrImage)
	case strings.HasPrefix(ref, "data:"):
		_, payload, ok := strings.Cut(ref, ";base64,")
		if !ok {
			return nil, fmt.Errorf("%w: a data URL without ;base64,", ErrImage)
		}
		return decodeBase64(payload)
	}
	if r.lookup != nil {
		if cell, ok, err := r.lookup.get(ref); err != nil {
			return nil, err
		} else if ok {
			return decodeBase64(cell)
		}
	}
	if len(ref) < 4096 && !strings.ContainsAny(ref, "\n\x00") {
		data, found, err := r.file(ref)
		if found || err != nil {
			return data, err
		}
		if r.rows != nil {
			if cell, ok, err := r.rows(ref); err != nil {
				return nil, err
			} else if ok {
				return decodeBase64(cell)
			}
		}
	}
	if len(ref) < 64 || looksLikePath(ref) {
		return nil, fmt.Errorf("%w: no file, key or base64: %q", ErrImage, shorten(ref))
	}
	return decodeBase64(ref)
}

// file reads ref as a path, refusing what is too large before reading it.
func (r *imageResolver) file(ref string) (data []byte, found bool, err error) {
	path := ref
	if !filepath.IsAbs(path) {
		path = filepath.Join(r.root, path)
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err != nil && len(ref) > 255 { // base64 makes a name too long
		return nil, false, nil
	}
	if err != nil {
		return nil, true, fmt.Errorf("%w: %w", ErrImage, err)
	}
	if !info.Mode().IsRegular() {
		return nil, true, fmt.Errorf("%w: %s is not a regular file", ErrImage, path)
	}
	if info.Size() > r.limits.Bytes {
		return nil, true, fmt.Errorf("%w: %s has %d bytes, at most %d", ErrImage, path, info.Size(), r.limits.Bytes)
	}
	if data, err = os.ReadFile(path); err != nil {
		return nil, true, fmt.Errorf("%w: %w", ErrImage, err)
	}
	return data, true, nil
}

// looksLikePath tells a path that does not exist from base64: a short
// extension after the last dot, which base64 never has.
func looksLikePath(ref string) bool {
	ext := filepath.Ext(ref)
	return len(ext) >= 2 && len(ext) <= 6
}

// decodeBase64 takes padded and unpadded standard base64, line breaks included.
func decodeBase64(s string) ([]byte, error) {
	s = strings.TrimRight(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == ' ' {
			return -1
		}
		return r
	}, s), "=")
	data, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: base64 of %d characters, starting %q: %w", ErrImage, len(s), shorten(s), err)
	}
	return data, nil
}

func shorten(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}
