package qwenvl

import (
	"errors"
	"slices"
	"testing"
)

func TestPositionsTextAndTwoImages(t *testing.T) {
	c := microConfig(t)
	const pad = 42
	grids := []Grid{{1, 4, 6}, {1, 2, 2}} // 2x3 and 1x1 merged tokens
	prompt := []int32{1, 44, pad, pad, pad, pad, pad, pad, 45, 44, pad, 45, 7}
	spans, err := c.ImageSpans(prompt, grids)
	if err != nil {
		t.Fatal(err)
	}
	if spans[0].Offset != 2 || spans[1].Offset != 10 {
		t.Fatalf("spans %+v", spans)
	}
	got, next, err := c.Positions(len(prompt), spans)
	if err != nil {
		t.Fatal(err)
	}
	want := []Position{{0, 0, 0}, {1, 1, 1},
		{2, 2, 2}, {2, 2, 3}, {2, 2, 4}, {2, 3, 2}, {2, 3, 3}, {2, 3, 4},
		{5, 5, 5}, {6, 6, 6}, {7, 7, 7}, {8, 8, 8}, {9, 9, 9}}
	if !slices.Equal(got, want) || next != 10 {
		t.Errorf("positions %v next %d", got, next)
	}
}

func TestPositionsOfTextCount(t *testing.T) {
	got, next, err := microConfig(t).Positions(3, nil)
	if err != nil || next != 3 || !slices.Equal(got, []Position{{0, 0, 0}, {1, 1, 1}, {2, 2, 2}}) {
		t.Errorf("%v %d %v", got, next, err)
	}
}

func TestImageSpansRejects(t *testing.T) {
	c := microConfig(t)
	for name, tc := range map[string]struct {
		prompt []int32
		grids  []Grid
	}{
		"run too short":       {[]int32{42, 1}, []Grid{{1, 4, 2}}},
		"run too long":        {[]int32{42, 42, 42}, []Grid{{1, 4, 2}}},
		"image without token": {[]int32{1, 2}, []Grid{{1, 2, 2}}},
		"token without image": {[]int32{1, 42}, nil},
		"odd grid":            {[]int32{42}, []Grid{{1, 3, 2}}},
		"empty grid":          {[]int32{42}, []Grid{{0, 2, 2}}},
		"vast grid":           {[]int32{42}, []Grid{{1, 1 << 40, 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.ImageSpans(tc.prompt, tc.grids); !errors.Is(err, ErrPrompt) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, _, err := c.Positions(3, []ImageSpan{{Offset: 1, Grid: Grid{1, 4, 4}}}); !errors.Is(err, ErrPrompt) {
		t.Errorf("span past the prompt: %v", err)
	}
}

func TestWindowsCutAtTheBorder(t *testing.T) {
	v := microConfig(t).Vision
	// 5 x 6 merged tokens, windows of 4 x 4: sizes 16, 8, 4, 2.
	order, bounds := v.Windows(Grid{1, 10, 12})
	if !slices.Equal(bounds, []int{0, 64, 96, 112, 120}) {
		t.Errorf("bounds %v", bounds)
	}
	if !slices.Equal(order[:6], []int{0, 1, 2, 3, 6, 7}) || !slices.Equal(order[16:18], []int{4, 5}) || order[29] != 29 {
		t.Errorf("order %v", order)
	}
	sorted := slices.Sorted(slices.Values(order))
	for i, n := range sorted {
		if i != n {
			t.Fatalf("order is no permutation: %v", order)
		}
	}
}

func TestPatchPositionsFollowMergeBlocks(t *testing.T) {
	got := PatchPositions(Grid{1, 2, 4}, 2)
	want := []PatchPosition{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if b := FrameBounds(Grid{2, 4, 6}); !slices.Equal(b, []int{0, 24, 48}) {
		t.Errorf("frame bounds %v", b)
	}
}
