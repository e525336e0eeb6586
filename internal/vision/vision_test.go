package vision_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/vision"
	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
	"pgregory.net/rapid"
)

// pattern is a picture whose pixels all differ.
func pattern(w, h int) *image.NRGBA {
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			m.SetNRGBA(x, y, color.NRGBA{uint8(x * 7), uint8(y * 11), uint8(x*3 + y*5), 255})
		}
	}
	return m
}

// encoded writes m in a format.
func encoded(t testing.TB, m image.Image, format string) []byte {
	t.Helper()
	var out bytes.Buffer
	var err error
	switch format {
	case "png":
		err = png.Encode(&out, m)
	case "jpeg":
		err = jpeg.Encode(&out, m, &jpeg.Options{Quality: 95})
	case "bmp":
		err = bmp.Encode(&out, m)
	case "tiff":
		err = tiff.Encode(&out, m, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// webpFile is a lossless WebP of 3 x 2 pixels, all of them red.
var webpFile = []byte("RIFF\x1c\x00\x00\x00WEBPVP8L\x0f\x00\x00\x00\x2f\x02\x40\x00\x00\x07\x10\xfd\x8f\xfe\x07\x22\xa2\xff\x01\x00")

func TestQwensRuleForSizes(t *testing.T) {
	// Worked by hand from the rule; the tests against transformers try thousands.
	c := vision.DefaultConfig()
	small := c
	small.MinPixels, small.MaxPixels = 3136, 12544
	for _, test := range []struct {
		config       vision.Config
		h, w         int
		wantH, wantW int
	}{
		{c, 84, 84, 84, 84},
		{c, 56, 56, 56, 56},
		{c, 42, 98, 56, 112}, // 1.5 and 3.5 round to even: 2 and 4
		{c, 70, 70, 56, 56},  // 2.5 rounds to 2
		{c, 20, 20, 56, 56},
		{c, 1, 150, 28, 700}, // beta = sqrt(3136/150) = 4.57: 0.16 rounds up to 1, 24.5 to 25
		{c, 10000, 10000, 980, 980},
		{small, 1000, 1000, 112, 112},
		{small, 500, 2000, 56, 224},
		{small, 40, 4000, 28, 1120}, // a side never falls below one token
	} {
		h, w, err := test.config.Resized(test.h, test.w)
		if err != nil || h != test.wantH || w != test.wantW {
			t.Errorf("%d x %d: %d x %d, %v, want %d x %d", test.h, test.w, h, w, err, test.wantH, test.wantW)
		}
	}
	for _, size := range [][2]int{{1, 201}, {0, 5}, {5, 0}, {-1, 5}, {20000, 99}} {
		if _, _, err := c.Resized(size[0], size[1]); !errors.Is(err, vision.ErrImage) {
			t.Errorf("%v: %v", size, err)
		}
	}
	// 0 x 0 tokens are under every minimum, so the rule scales up to one token.
	least := c
	least.MinPixels = 1
	if h, w, err := least.Resized(10, 10); err != nil || h != 28 || w != 28 {
		t.Errorf("10 x 10: %d x %d, %v", h, w, err)
	}
	// Where it rounds one side to 0, the other cannot save it.
	if _, _, err := least.Resized(10, 30); err != nil {
		t.Errorf("10 x 30: %v", err)
	}
}

func TestSizesKeepTheBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := vision.DefaultConfig()
		c.MinPixels = rapid.IntRange(784, 10_000).Draw(t, "min")
		c.MaxPixels = rapid.IntRange(c.MinPixels*4, 1_000_000).Draw(t, "max")
		h, w := rapid.IntRange(1, 5000).Draw(t, "h"), rapid.IntRange(1, 5000).Draw(t, "w")
		gotH, gotW, err := c.Resized(h, w)
		if err != nil {
			if max(h, w) <= 200*min(h, w) {
				t.Fatalf("%d x %d: %v", h, w, err)
			}
			return
		}
		if gotH%28 != 0 || gotW%28 != 0 || gotH < 28 || gotW < 28 {
			t.Fatalf("%d x %d", gotH, gotW)
		}
		if gotH*gotW < c.MinPixels {
			t.Fatalf("%d x %d is under %d pixels", gotH, gotW, c.MinPixels)
		}
		if gotH > 28 && gotW > 28 && gotH*gotW > c.MaxPixels {
			t.Fatalf("%d x %d is over %d pixels", gotH, gotW, c.MaxPixels)
		}
	})
}

func TestPatchOrder(t *testing.T) {
	// 112 x 56 pixels, not resized; the red channel is the column, green the row.
	m := image.NewNRGBA(image.Rect(0, 0, 112, 56))
	for y := range 56 {
		for x := range 112 {
			m.SetNRGBA(x, y, color.NRGBA{uint8(x), uint8(y), 7, 255})
		}
	}
	c := vision.DefaultConfig()
	p, err := vision.Preprocess(encoded(t, m, "png"), c)
	if err != nil {
		t.Fatal(err)
	}
	if p.Grid != [3]int{1, 4, 8} || vision.Tokens(p.Grid, 2) != 8 || len(p.Pixels) != 4*8*3*2*14*14 {
		t.Fatalf("grid %v, %d tokens, %d numbers", p.Grid, vision.Tokens(p.Grid, 2), len(p.Pixels))
	}
	value := func(ch int, v float64) float64 {
		return (v/255 - float64(c.Mean[ch])) / float64(c.Std[ch])
	}
	// Patches go in blocks of 2 x 2: the columns and rows of the first ten corners.
	corners := [][2]int{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {2, 0}, {3, 0}, {2, 1}, {3, 1}, {4, 0}, {5, 0}}
	for i, corner := range corners {
		patch := p.Pixels[i*3*2*196:]
		for ch := range 3 {
			for time := range 2 {
				for _, at := range [][2]int{{0, 0}, {13, 0}, {5, 9}} {
					x, y := corner[0]*14+at[0], corner[1]*14+at[1]
					got := float64(patch[(ch*2+time)*196+at[1]*14+at[0]])
					if want := value(ch, [3]float64{float64(x), float64(y), 7}[ch]); math.Abs(got-want) > 1e-5 {
						t.Fatalf("patch %d, channel %d, time %d, pixel %v: %v, want %v", i, ch, time, at, got, want)
					}
				}
			}
		}
	}
}

func TestResizing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 40)
		w, h, nw, nh := size.Draw(t, "w"), size.Draw(t, "h"), size.Draw(t, "nw"), size.Draw(t, "nh")
		v := byte(rapid.IntRange(0, 255).Draw(t, "v"))
		m := &vision.Image{Width: w, Height: h, Pix: bytes.Repeat([]byte{v}, 3*w*h)}
		out := m.Resize(nh, nw)
		if out.Width != nw || out.Height != nh || len(out.Pix) != 3*nw*nh {
			t.Fatalf("%d x %d, %d bytes", out.Width, out.Height, len(out.Pix))
		}
		for i, got := range out.Pix { // weights sum to 1, up to their rounding
			if math.Abs(float64(got)-float64(v)) > 1 {
				t.Fatalf("byte %d is %d, all were %d", i, got, v)
			}
		}
	})
	// Keys' filter by hand, doubling [0, 100]: the last output lies 1/4 and 5/4
	// from the two pixels, weights 0.8672 and -0.0703, so 100 * 0.8672/0.7969 = 108.8;
	// the third 1/4 and 3/4, so 100 * 0.8672/1.0938 = 79.3.
	m := &vision.Image{Width: 2, Height: 1, Pix: []byte{0, 0, 0, 100, 100, 100}}
	out := m.Resize(1, 4)
	var got []byte
	for x := range 4 {
		got = append(got, out.Pix[3*x])
	}
	if want := []byte{0, 21, 79, 109}; !slices.Equal(got, want) {
		t.Errorf("doubled [0 100] is %v, want %v", got, want)
	}
	if m.Resize(1, 2) != m {
		t.Error("an image of the right size was copied")
	}
}

func TestMeasureAgreesWithPreprocess(t *testing.T) {
	c := vision.DefaultConfig()
	for _, format := range []string{"png", "jpeg", "bmp", "tiff"} {
		for _, size := range [][2]int{{60, 130}, {300, 40}, {5, 5}} {
			data := encoded(t, pattern(size[0], size[1]), format)
			grid, err := vision.Measure(data, c)
			if err != nil {
				t.Fatal(err)
			}
			p, err := vision.Preprocess(data, c)
			if err != nil || p.Grid != grid {
				t.Errorf("%s %v: measured %v, prepared %v, %v", format, size, grid, p.Grid, err)
			}
		}
	}
}

func TestReadingTheConfig(t *testing.T) {
	c, err := vision.ParseConfig([]byte(`{"min_pixels": 4000, "size": {"shortest_edge": 1, "longest_edge": 50000},
		"patch_size": 16, "image_mean": [0.5, 0.5, 0.25], "rescale_factor": 0.00392156862745098, "resample": 3}`))
	if err != nil || c.MinPixels != 4000 || c.MaxPixels != 50000 || c.PatchSize != 16 || c.Mean != [3]float32{0.5, 0.5, 0.25} ||
		c.MergeSize != 2 || c.Std != vision.DefaultConfig().Std {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := vision.ParseConfig([]byte("{}")); err != nil || c != vision.DefaultConfig() {
		t.Errorf("an empty file gives %+v, %v", c, err)
	}
	for text, want := range map[string]string{
		`[]`:                                    "preprocessor_config.json",
		`{"patch_size": "x"}`:                   "patch_size",
		`{"patch_size": 0}`:                     "patch_size is 0",
		`{"merge_size": 65}`:                    "merge_size 65",
		`{"min_pixels": 9, "max_pixels": 8}`:    "min_pixels 9 is above max_pixels 8",
		`{"image_mean": [1]}`:                   "image_mean must have 3 numbers",
		`{"image_std": [1, 1, 0]}`:              "image_std[2] is 0",
		`{"resample": 2}`:                       "resample must be 3",
		`{"rescale_factor": 1}`:                 "rescale_factor",
		`{"do_normalize": false}`:               "do_normalize must be true",
		`{"do_resize": false, "resample": 0}`:   "do_resize must be true",
		`{"max_pixels": 99999999999, "a": 1.5}`: "max_pixels",
	} {
		if _, err := vision.ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// Everything at once.
	_, err = vision.ParseConfig([]byte(`{"resample": 0, "patch_size": -1, "do_rescale": false}`))
	for _, part := range []string{"resample", "patch_size", "do_rescale"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v lacks %s", err, part)
		}
	}
	if _, err := vision.Preprocess(webpFile, vision.Config{}); err == nil {
		t.Error("the zero Config was accepted")
	}
	if _, err := vision.Measure(webpFile, vision.Config{}); err == nil {
		t.Error("the zero Config was accepted")
	}
}

// FuzzParseConfig reads any bytes: an error or a usable configuration.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"size": {"shortest_edge": 3136, "longest_edge": 12544}, "image_std": [1, 2, 3]}`))
	f.Add([]byte(`{"min_pixels": 1, "max_pixels": 1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := vision.ParseConfig(data)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		if !json.Valid(data) {
			t.Fatalf("%q is no JSON", data)
		}
		if h, w, err := c.Resized(100, 150); err == nil && (h < c.PatchSize || w < c.PatchSize) {
			t.Fatalf("%d x %d", h, w)
		}
	})
}
