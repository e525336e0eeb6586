package vision

import (
	"fmt"
	"math"
)

// maxAspect is the largest ratio of the sides that Qwen's rule accepts.
const maxAspect = 200

// Resized is Qwen's rule for the size of an image (smart_resize of Qwen2-VL's
// processor): both sides become multiples of PatchSize*MergeSize, the nearest
// ones, unless the number of pixels leaves [MinPixels, MaxPixels]; then both are
// scaled by the same factor and rounded down, or up.
func (c Config) Resized(height, width int) (h, w int, err error) {
	if height < 1 || width < 1 {
		return 0, 0, fmt.Errorf("%w: %d x %d pixels", ErrImage, width, height)
	}
	long, short := float64(max(height, width)), float64(min(height, width))
	if long/short > maxAspect {
		return 0, 0, fmt.Errorf("%w: %d x %d pixels: ratio of the sides %.4g is over %d", ErrImage, width, height, long/short, maxAspect)
	}
	factor := float64(c.PatchSize * c.MergeSize)
	fh, fw := float64(height), float64(width)
	// Halves round to even, as Python's round does.
	nh, nw := math.RoundToEven(fh/factor)*factor, math.RoundToEven(fw/factor)*factor
	switch {
	case nh*nw > float64(c.MaxPixels):
		beta := math.Sqrt(fh * fw / float64(c.MaxPixels))
		nh = max(factor, math.Floor(fh/beta/factor)*factor)
		nw = max(factor, math.Floor(fw/beta/factor)*factor)
	case nh*nw < float64(c.MinPixels):
		beta := math.Sqrt(float64(c.MinPixels) / (fh * fw))
		nh = math.Ceil(fh*beta/factor) * factor
		nw = math.Ceil(fw*beta/factor) * factor
	}
	// A side of less than half the factor rounds to 0 when MinPixels is small.
	if nh < factor || nw < factor {
		return 0, 0, fmt.Errorf("%w: %d x %d pixels are too few for min_pixels %d", ErrImage, width, height, c.MinPixels)
	}
	return int(nh), int(nw), nil
}
