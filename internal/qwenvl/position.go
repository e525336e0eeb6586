package qwenvl

import (
	"errors"
	"fmt"
)

// ErrPrompt is wrapped by every error about a prompt whose tokens and images
// do not fit together or into the model.
var ErrPrompt = errors.New("unusable prompt")

// Grid is the size of one image in patches: frames, rows, columns. Rows and
// columns are multiples of the merge size.
type Grid struct{ T, H, W int }

// Patches is the number of patches of the image.
func (g Grid) Patches() int { return g.T * g.H * g.W }

// Tokens is the number of text positions that the image takes after merging
// merge x merge patches.
func (g Grid) Tokens(merge int) int { return g.T * (g.H / merge) * (g.W / merge) }

// maxGridSide bounds each side of a grid, far above what any resize rule gives.
const maxGridSide = 1 << 14

func (g Grid) check(merge int) error {
	for _, n := range [...]int{g.T, g.H, g.W} {
		if n < 1 || n > maxGridSide {
			return fmt.Errorf("%w: grid %dx%dx%d has a side outside 1 to %d", ErrPrompt, g.T, g.H, g.W, maxGridSide)
		}
	}
	if g.H%merge != 0 || g.W%merge != 0 {
		return fmt.Errorf("%w: grid %dx%dx%d is not a multiple of the merge size %d", ErrPrompt, g.T, g.H, g.W, merge)
	}
	return nil
}

// ImageSpan places one image in a prompt: its merged tokens stand at positions
// Offset to Offset + Grid.Tokens(merge) - 1.
type ImageSpan struct {
	Offset int
	Grid   Grid
}

// ImageSpans finds where the images of an expanded prompt stand: the runs of
// imageToken, in order, each exactly as long as its grid says. It fails when a
// run and its grid differ, or when their numbers do. Two images need at least
// one other token between them (the chat template puts vision end and start
// there). Only prompts are scanned: a response that happens to contain the
// token is text.
func (c Config) ImageSpans(prompt []int32, grids []Grid) ([]ImageSpan, error) {
	spans := make([]ImageSpan, 0, len(grids))
	for at := 0; at < len(prompt); {
		if int(prompt[at]) != c.ImageToken {
			at++
			continue
		}
		end := at
		for end < len(prompt) && int(prompt[end]) == c.ImageToken {
			end++
		}
		if len(spans) == len(grids) {
			return nil, fmt.Errorf("%w: image tokens at position %d, but only %d images were given", ErrPrompt, at, len(grids))
		}
		grid := grids[len(spans)]
		if err := grid.check(c.Vision.MergeSize); err != nil {
			return nil, fmt.Errorf("image %d: %w", len(spans), err)
		}
		if want := grid.Tokens(c.Vision.MergeSize); end-at != want {
			return nil, fmt.Errorf("%w: image %d has %d tokens at position %d, its grid %dx%dx%d asks for %d",
				ErrPrompt, len(spans), end-at, at, grid.T, grid.H, grid.W, want)
		}
		spans = append(spans, ImageSpan{Offset: at, Grid: grid})
		at = end
	}
	if len(spans) != len(grids) {
		return nil, fmt.Errorf("%w: %d images were given, the prompt has tokens for %d", ErrPrompt, len(grids), len(spans))
	}
	return spans, nil
}

// Position is the M-RoPE position of one token: time, height, width. Text has
// three equal entries.
type Position [3]int32

// TextPosition is the position of a text token at p.
func TextPosition(p int) Position { return Position{int32(p), int32(p), int32(p)} }

// Positions gives the M-RoPE positions of a prompt of n tokens whose images
// stand at spans (in order, as ImageSpans returns them), and next, the position
// of the first token after the prompt; response token t is at next + t.
//
// Text counts on by one. An image that starts at p has time p + frame, height
// p + row, width p + column of its merged grid, and the text after it goes on
// at p + max(rows, columns) of the merged grid.
func (c Config) Positions(n int, spans []ImageSpan) (positions []Position, next int, err error) {
	merge := c.Vision.MergeSize
	positions = make([]Position, 0, n)
	for i, span := range spans {
		if err := span.Grid.check(merge); err != nil {
			return nil, 0, fmt.Errorf("image %d: %w", i, err)
		}
		tokens := span.Grid.Tokens(merge)
		if span.Offset < len(positions) || span.Offset+tokens > n {
			return nil, 0, fmt.Errorf("%w: image %d at %d with %d tokens does not fit a prompt of %d after %d",
				ErrPrompt, i, span.Offset, tokens, n, len(positions))
		}
		for len(positions) < span.Offset {
			positions = append(positions, TextPosition(next))
			next++
		}
		rows, columns := span.Grid.H/merge, span.Grid.W/merge
		for t := range span.Grid.T {
			for row := range rows {
				for column := range columns {
					positions = append(positions, Position{int32(next + t), int32(next + row), int32(next + column)})
				}
			}
		}
		next += max(rows, columns)
	}
	for len(positions) < n {
		positions = append(positions, TextPosition(next))
		next++
	}
	return positions, next, nil
}
