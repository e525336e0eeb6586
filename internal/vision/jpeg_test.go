package vision_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"image"
	"image/jpeg"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/vision"
	"pgregory.net/rapid"
)

// progressiveFile is a progressive JPEG of 21 x 13 pixels in eight scans, with
// refinements, subsampled colours and restart markers; progressiveDigest is the
// SHA-256 of its pixels as Pillow (libjpeg-turbo) decodes them.
const (
	progressiveFile = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxO" +
		"UlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//" +
		"wgARCAANABUDASIAAhEBAxEB/8QAGAAAAgMAAAAAAAAAAAAAAAAAAAUBAgP/xAAWAQEBAQAAAAAAAAAAAAAAAAADAgX/3QAEAAL/2gAMAwEAAhAD" +
		"EAAAAYd1xCkowHy//8QAFBABAAAAAAAAAAAAAAAAAAAAEP/aAAgBAQABBQI//9A//9E//8QAFREBAQAAAAAAAAAAAAAAAAAAAxD/2gAIAQMBAT8B" +
		"M5//xAAaEQABBQEAAAAAAAAAAAAAAAAAAwQRFEFh/9oACAECAQE/AVXkYVen/8QAFBABAAAAAAAAAAAAAAAAAAAAEP/aAAgBAQAGPwI//9A//9E/" +
		"/8QAFBABAAAAAAAAAAAAAAAAAAAAEP/aAAgBAQABPyE//9A//9E//9oADAMBAAIAAwAAABCL/wD/xAAWEQEBAQAAAAAAAAAAAAAAAAARACH/2gAI" +
		"AQMBAT8QV2L/xAAZEQACAwEAAAAAAAAAAAAAAAAA4REhwfD/2gAIAQIBAT8Qo7R3DP/EABQQAQAAAAAAAAAAAAAAAAAAABD/2gAIAQEAAT8QP//Q" +
		"P//RP//Z"
	progressiveDigest = "83e78da09511045a439b23d0a34b80b003de25393496595ddea56fcb20bf5a11"
)

func progressive(t testing.TB) []byte {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(progressiveFile)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAProgressiveFileIsAsPillowDecodesIt(t *testing.T) {
	sum := sha256.Sum256(decode(t, progressive(t)).Pix)
	if got := hex.EncodeToString(sum[:]); got != progressiveDigest {
		t.Errorf("pixels %s", got)
	}
}

func TestBaselineFilesDifferFromGosByRoundingOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, h := rapid.IntRange(1, 40).Draw(t, "w"), rapid.IntRange(1, 40).Draw(t, "h")
		grey := image.NewGray(image.Rect(0, 0, w, h))
		copy(grey.Pix, rapid.SliceOfN(rapid.Byte(), w*h, w*h).Draw(t, "pixels"))
		var out bytes.Buffer
		if err := jpeg.Encode(&out, grey, &jpeg.Options{Quality: rapid.IntRange(1, 100).Draw(t, "quality")}); err != nil {
			t.Fatal(err)
		}
		want, err := jpeg.Decode(bytes.NewReader(out.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := vision.Decode(out.Bytes(), 0)
		if err != nil {
			t.Fatal(err)
		}
		for y := range h {
			for x := range w {
				a, b := int(got.Pix[3*(y*w+x)]), int(want.(*image.Gray).GrayAt(x, y).Y)
				if a-b > 1 || b-a > 1 {
					t.Fatalf("(%d, %d): %d, Go has %d", x, y, a, b)
				}
			}
		}
	})
}

func TestFlatColoursAreExact(t *testing.T) {
	// A grey of any value has a DC coefficient only, which survives quality 100.
	for _, v := range []byte{0, 1, 127, 128, 129, 254, 255} {
		m := image.NewNRGBA(image.Rect(0, 0, 19, 11))
		for i := range m.Pix {
			m.Pix[i] = v
			if i%4 == 3 {
				m.Pix[i] = 255
			}
		}
		var out bytes.Buffer
		if err := jpeg.Encode(&out, m, &jpeg.Options{Quality: 100}); err != nil {
			t.Fatal(err)
		}
		for i, got := range decode(t, out.Bytes()).Pix {
			if got != v {
				t.Fatalf("grey %d: byte %d is %d", v, i, got)
			}
		}
	}
}

// patch replaces the first occurrence of old.
func patch(t *testing.T, data []byte, old, with string) []byte {
	t.Helper()
	i := bytes.Index(data, []byte(old))
	if i < 0 {
		t.Fatalf("% x is not in the file", old)
	}
	return slices.Concat(data[:i], []byte(with), data[i+len(old):])
}

// segmentAt finds a marker's segment: its place and its length, marker included.
func segmentAt(t *testing.T, data []byte, marker byte) (at, length int) {
	t.Helper()
	for at = 2; at+4 < len(data); {
		length = 2 + int(binary.BigEndian.Uint16(data[at+2:]))
		if data[at+1] == marker {
			return at, length
		}
		at += length
	}
	t.Fatalf("no marker %#x", marker)
	return 0, 0
}

func TestBrokenJPEGs(t *testing.T) {
	base := encoded(t, pattern(40, 30), "jpeg")
	full := progressive(t)
	without := func(data []byte, marker byte) []byte {
		at, n := segmentAt(t, data, marker)
		return slices.Concat(data[:at], data[at+n:])
	}
	frameAt, frameLength := segmentAt(t, base, 0xc0)
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"Huffman tables missing": {without(base, 0xc4), "a code table is missing"},
		"two frames":             {slices.Insert(slices.Clone(base), frameAt, base[frameAt:frameAt+frameLength]...), "multiple SOF"},
		"too many codes":         {patch(t, base, "\xff\xc4\x01\xa2\x00\x00\x01", "\xff\xc4\x01\xa2\x00\x03\x01"), "more codes than fit"},
		"restart marker missing": {patch(t, full, "\xff\xd0", "\xff\xd3"), "no restart marker 0"},
		"scan of nothing":        {patch(t, base, "\xff\xda\x00\x0c\x03\x01", "\xff\xda\x00\x0c\x03\x09"), "component 9"},
		"component twice":        {patch(t, base, "\xff\xda\x00\x0c\x03\x01\x00\x02", "\xff\xda\x00\x0c\x03\x01\x00\x01"), "component 1 twice"},
		"no such coefficients":   {patch(t, full, "\xff\xda\x00\x08\x01\x01\x00\x01\x05", "\xff\xda\x00\x08\x01\x01\x00\x06\x05"), "scan of coefficients 6 to 5"},
		"sampling of 0":          {patch(t, base, "\x03\x01\x22", "\x03\x01\x02"), "JPEG header"},
		"many scans": {func() []byte {
			at := bytes.Index(full, []byte("\xff\xda\x00\x08\x01\x01\x00\x01\x05"))
			end := at + bytes.Index(full[at:], []byte("\xff\xc4"))
			return slices.Concat(full[:end], bytes.Repeat(full[at:end], 300), full[end:])
		}(), "more than 200 scans"},
	} {
		_, err := vision.Decode(test.data, 0)
		if !errors.Is(err, vision.ErrImage) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A frame in the middle of a scan, cut at every byte: never a picture of half
	// its data, never a panic.
	for i := range len(full) - 2 {
		if m, err := vision.Decode(full[:i], 0); err == nil {
			// The last scans only refine: as libjpeg would, what is there could be
			// shown, but a truncated file is refused.
			t.Fatalf("cut at %d of %d: %d x %d", i, len(full), m.Width, m.Height)
		} else if !errors.Is(err, vision.ErrImage) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestRareJPEGsGoToGosDecoder(t *testing.T) {
	// Components named R, G, B without a JFIF segment are no YCbCr.
	base := encoded(t, pattern(16, 16), "jpeg")
	frame, n := segmentAt(t, base, 0xc0)
	rgb := slices.Clone(base)
	sosAt := bytes.Index(rgb, []byte("\xff\xda\x00\x0c\x03"))
	for i, id := range []byte("RGB") {
		rgb[frame+10+3*i] = id
		rgb[frame+11+3*i] = 0x11
		rgb[sosAt+5+2*i] = id
	}
	if n != 19 {
		t.Fatalf("frame header of %d bytes", n)
	}
	want, errGo := jpeg.Decode(bytes.NewReader(rgb))
	got, err := vision.Decode(rgb, 0)
	if (err == nil) != (errGo == nil) {
		t.Fatalf("%v, Go says %v", err, errGo)
	}
	if err == nil {
		r, g, b, _ := want.At(3, 2).RGBA()
		if at(got, 3, 2) != [3]byte{byte(r >> 8), byte(g >> 8), byte(b >> 8)} {
			t.Errorf("pixel %v, Go has %v", at(got, 3, 2), want.At(3, 2))
		}
	}
}
