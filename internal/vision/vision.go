// Package vision prepares images for Qwen2.5-VL: it decodes a file within
// limits, resizes it by Qwen's rule with the bicubic filter that transformers
// uses, normalises it, and cuts it into patches in the order that the vision
// tower expects.
//
// It opens no file and no connection, knows no tokens beyond their number, and
// augments nothing.
package vision

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// Config says how an image becomes patches. The zero value is not usable; see
// DefaultConfig and ParseConfig.
type Config struct {
	PatchSize         int // side of a patch, pixels
	TemporalPatchSize int // a still image is repeated this often in time
	MergeSize         int // a token covers MergeSize x MergeSize patches
	MinPixels         int // the resized image has at least about this many pixels
	MaxPixels         int // and at most this many
	Mean, Std         [3]float32
	// MaxSourcePixels refuses larger files before they are decoded; 0 is
	// DefaultMaxSourcePixels.
	MaxSourcePixels int
}

// DefaultMaxSourcePixels is the largest image that is decoded by default, in
// pixels. A fundus camera makes up to about 50 million.
const DefaultMaxSourcePixels = 100_000_000

// DefaultConfig is that of transformers' Qwen2VLImageProcessor.
func DefaultConfig() Config {
	return Config{
		PatchSize: 14, TemporalPatchSize: 2, MergeSize: 2,
		MinPixels: 56 * 56, MaxPixels: 28 * 28 * 1280,
		Mean: [3]float32{0.48145466, 0.4578275, 0.40821073},
		Std:  [3]float32{0.26862954, 0.26130258, 0.27577711},
	}
}

// fileConfig is preprocessor_config.json as far as it matters here.
type fileConfig struct {
	PatchSize         *int      `json:"patch_size"`
	TemporalPatchSize *int      `json:"temporal_patch_size"`
	MergeSize         *int      `json:"merge_size"`
	MinPixels         *int      `json:"min_pixels"`
	MaxPixels         *int      `json:"max_pixels"`
	Size              *fileSize `json:"size"`
	Mean              []float32 `json:"image_mean"`
	Std               []float32 `json:"image_std"`
	Resample          *int      `json:"resample"`
	RescaleFactor     *float64  `json:"rescale_factor"`
	DoResize          *bool     `json:"do_resize"`
	DoRescale         *bool     `json:"do_rescale"`
	DoNormalize       *bool     `json:"do_normalize"`
	DoConvertRGB      *bool     `json:"do_convert_rgb"`
}

type fileSize struct {
	ShortestEdge *int `json:"shortest_edge"` // despite the name: pixels of the whole image
	LongestEdge  *int `json:"longest_edge"`
}

// bicubic is PIL's number of that filter.
const bicubic = 3

// ParseConfig reads preprocessor_config.json. What the file leaves out has
// transformers' default; a step that this package cannot do otherwise (another
// filter, no normalisation) is an error that names the key.
func ParseConfig(data []byte) (Config, error) {
	c := DefaultConfig()
	var f fileConfig
	if err := json.Unmarshal(data, &f); err != nil {
		return c, fmt.Errorf("vision: reading preprocessor_config.json: %w", err)
	}
	if f.Size != nil {
		set(&c.MinPixels, f.Size.ShortestEdge)
		set(&c.MaxPixels, f.Size.LongestEdge)
	}
	set(&c.MinPixels, f.MinPixels)
	set(&c.MaxPixels, f.MaxPixels)
	set(&c.PatchSize, f.PatchSize)
	set(&c.TemporalPatchSize, f.TemporalPatchSize)
	set(&c.MergeSize, f.MergeSize)
	var errs []error
	fixed := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("vision: preprocessor_config.json: %s", what))
		}
	}
	triple := func(dst *[3]float32, v []float32, key string) {
		if v != nil {
			fixed(len(v) == 3, key+" must have 3 numbers")
			copy(dst[:], v)
		}
	}
	triple(&c.Mean, f.Mean, "image_mean")
	triple(&c.Std, f.Std, "image_std")
	fixed(f.Resample == nil || *f.Resample == bicubic, "resample must be 3 (bicubic)")
	fixed(f.RescaleFactor == nil || math.Abs(*f.RescaleFactor*255-1) < 1e-9, "rescale_factor must be 1/255")
	for key, flag := range map[string]*bool{"do_resize": f.DoResize, "do_rescale": f.DoRescale,
		"do_normalize": f.DoNormalize, "do_convert_rgb": f.DoConvertRGB} {
		fixed(flag == nil || *flag, key+" must be true")
	}
	return c, errors.Join(append(errs, c.Validate())...)
}

// set overwrites a default by a value that is given.
func set(dst *int, given *int) {
	if given != nil {
		*dst = *given
	}
}

// Validate reports all that is wrong with c at once.
func (c Config) Validate() error {
	var errs []error
	positive := func(name string, v int) {
		if v < 1 || v > 1<<30 {
			errs = append(errs, fmt.Errorf("vision: %s is %d, want 1 to 2^30", name, v))
		}
	}
	positive("patch_size", c.PatchSize)
	positive("temporal_patch_size", c.TemporalPatchSize)
	positive("merge_size", c.MergeSize)
	positive("min_pixels", c.MinPixels)
	positive("max_pixels", c.MaxPixels)
	if c.PatchSize > 1024 || c.MergeSize > 64 || c.TemporalPatchSize > 64 {
		errs = append(errs, fmt.Errorf("vision: patch_size %d, merge_size %d or temporal_patch_size %d is out of range",
			c.PatchSize, c.MergeSize, c.TemporalPatchSize))
	}
	if c.MinPixels > c.MaxPixels {
		errs = append(errs, fmt.Errorf("vision: min_pixels %d is above max_pixels %d", c.MinPixels, c.MaxPixels))
	}
	if c.MaxSourcePixels < 0 {
		errs = append(errs, fmt.Errorf("vision: MaxSourcePixels is %d, want at least 0", c.MaxSourcePixels))
	}
	for i, s := range c.Std {
		if !(s > 0) {
			errs = append(errs, fmt.Errorf("vision: image_std[%d] is %v, want above 0", i, s))
		}
	}
	return errors.Join(errs...)
}

// Patches is an image as the vision tower takes it.
type Patches struct {
	Grid [3]int // patches in time, height and width: t, h, w
	// Pixels is [t*h*w, 3*TemporalPatchSize*PatchSize*PatchSize] row-major,
	// normalised. Rows go through the grid in blocks of MergeSize x MergeSize
	// patches (so that the rows of one token are neighbours); within a row the
	// order is channel, time, y, x.
	Pixels []float32
}

// Tokens is the number of image tokens of a grid after the merger.
func Tokens(grid [3]int, merge int) int {
	return grid[0] * grid[1] * grid[2] / (merge * merge)
}

// Preprocess turns an image file (JPEG, PNG, WebP, BMP, TIFF) into patches.
// Errors about the file wrap ErrImage.
func Preprocess(data []byte, c Config) (Patches, error) {
	if err := c.Validate(); err != nil {
		return Patches{}, err
	}
	img, err := Decode(data, c.MaxSourcePixels)
	if err != nil {
		return Patches{}, err
	}
	return img.Patches(c)
}

// Measure returns the grid that Preprocess would give, from the file's header
// alone: it decodes no pixels.
func Measure(data []byte, c Config) (grid [3]int, err error) {
	if err := c.Validate(); err != nil {
		return grid, err
	}
	h, err := sniff(data, c.MaxSourcePixels)
	if err != nil {
		return grid, err
	}
	height, width, err := c.Resized(h.height, h.width)
	if err != nil {
		return grid, err
	}
	return [3]int{1, height / c.PatchSize, width / c.PatchSize}, nil
}
