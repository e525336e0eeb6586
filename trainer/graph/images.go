package graph

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/vision"
)

// Images gives the bytes of an image file by its SHA-256 (lower-case hex). It
// is called from several goroutines.
type Images interface {
	Get(ctx context.Context, digest string) ([]byte, error)
}

// picture is an image as the tower takes it, in the window order of its rows.
type picture struct {
	grid    qwenvl.Grid
	pixels  []float32 // [patches, patch dim]
	rows    []qwenvl.PatchPosition
	place   []int32 // place[m] is where merged token m stands in window order
	windows []span  // in patch rows of this image
	frames  []span
}

// newPicture reorders the patches of an image as the tower visits them.
func newPicture(config qwenvl.VisionConfig, p vision.Patches) *picture {
	grid := qwenvl.Grid{T: p.Grid[0], H: p.Grid[1], W: p.Grid[2]}
	order, bounds := config.Windows(grid)
	positions := qwenvl.PatchPositions(grid, config.MergeSize)
	unit, dim := config.MergeSize*config.MergeSize, config.PatchDim()
	out := &picture{grid: grid, place: make([]int32, len(order)),
		pixels: make([]float32, len(p.Pixels)), rows: make([]qwenvl.PatchPosition, len(positions))}
	for i, m := range order {
		out.place[m] = int32(i)
		copy(out.pixels[i*unit*dim:(i+1)*unit*dim], p.Pixels[m*unit*dim:])
		copy(out.rows[i*unit:(i+1)*unit], positions[m*unit:])
	}
	out.windows = spansOf(bounds)
	// Windows never cross a frame, so a frame is the same rows in either order.
	out.frames = spansOf(qwenvl.FrameBounds(grid))
	return out
}

// spansOf turns cumulative ends into spans.
func spansOf(bounds []int) []span {
	spans := make([]span, 0, len(bounds)-1)
	for i := 1; i < len(bounds); i++ {
		spans = append(spans, span{bounds[i-1], bounds[i]})
	}
	return spans
}

// pictures keeps preprocessed images by digest, the oldest going first when
// their pixels exceed the limit.
type pictures struct {
	source  Images
	limit   int // elements
	workers int // goroutines that decode; at least 1
	size    int
	byID    map[string]*picture
	order   []string
	how     preparation // of the kept images
}

// preparation is what the pixels of a picture and their order depend on.
type preparation struct {
	config vision.Config
	window int // pixels of an attention window's side
}

// use drops all images when they would be prepared otherwise.
func (p *pictures) use(how preparation) {
	if p.how != how || p.byID == nil {
		p.how, p.byID, p.order, p.size = how, map[string]*picture{}, nil, 0
	}
}

// found is an image, or why there is none.
type found struct {
	picture *picture
	err     error
}

// all returns the images of these digests, decoding those that are not kept.
func (p *pictures) all(ctx context.Context, digests []string, v qwenvl.VisionConfig) map[string]found {
	out := make(map[string]found, len(digests))
	var missing []string
	for _, digest := range digests {
		if _, ok := out[digest]; ok {
			continue
		}
		kept, ok := p.byID[digest]
		out[digest] = found{picture: kept}
		if !ok {
			missing = append(missing, digest)
		}
	}
	made := make([]found, len(missing))
	var group sync.WaitGroup
	for worker := range min(p.workers, len(missing)) {
		group.Go(func() {
			for i := worker; i < len(missing); i += p.workers {
				made[i] = p.read(ctx, missing[i], v)
			}
		})
	}
	group.Wait()
	for i, digest := range missing {
		out[digest] = made[i]
		if made[i].err == nil {
			p.keep(digest, made[i].picture)
		}
	}
	return out
}

// read fetches and prepares one image.
func (p *pictures) read(ctx context.Context, digest string, v qwenvl.VisionConfig) found {
	if err := ctx.Err(); err != nil {
		return found{err: err}
	}
	if p.source == nil {
		return found{err: fmt.Errorf("image %s: no image store was given", digest)}
	}
	data, err := p.source.Get(ctx, digest)
	if err != nil {
		return found{err: fmt.Errorf("image %s: %w", digest, err)}
	}
	patches, err := vision.Preprocess(data, p.how.config)
	if err != nil {
		return found{err: fmt.Errorf("image %s: %w", digest, err)}
	}
	return found{picture: newPicture(v, patches)}
}

// keep adds an image, and lets the oldest go that exceed the limit.
func (p *pictures) keep(digest string, made *picture) {
	p.byID[digest] = made
	p.order = append(p.order, digest)
	for p.size += len(made.pixels); p.size > p.limit && len(p.order) > 1; p.order = p.order[1:] {
		p.size -= len(p.byID[p.order[0]].pixels)
		delete(p.byID, p.order[0])
	}
}

// angles holds cos and sin of position times frequency, for positions from 0.
type angles struct {
	frequencies []float64
	cos, sin    []float32 // [positions, frequencies]
}

// newAngles makes the rotary frequencies base^(-i/count), rounded to float32 as
// transformers' are.
func newAngles(base float64, count int) *angles {
	a := &angles{frequencies: make([]float64, count)}
	for i := range a.frequencies {
		a.frequencies[i] = float64(float32(math.Pow(base, -float64(i)/float64(count))))
	}
	return a
}

// at returns the row of a position.
func (a *angles) at(position int32) (cos, sin []float32) {
	n := len(a.frequencies)
	for have := len(a.cos) / n; have <= int(position); have++ {
		for _, f := range a.frequencies {
			// The product is rounded to float32 first, as transformers does.
			angle := float64(float32(float64(have) * f))
			a.cos = append(a.cos, float32(math.Cos(angle)))
			a.sin = append(a.sin, float32(math.Sin(angle)))
		}
	}
	return a.cos[int(position)*n : (int(position)+1)*n], a.sin[int(position)*n : (int(position)+1)*n]
}
