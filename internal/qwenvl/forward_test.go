package qwenvl

import (
	"slices"
	"testing"
)

// Tolerance to transformers in float32. The golden file has 6 to 7 decimals.
const agreement = 2e-5

func TestPositionsEqualTransformers(t *testing.T) {
	g := loadGolden(t)
	spans, err := g.model.Config.ImageSpans(g.Prompt, g.grids)
	if err != nil {
		t.Fatal(err)
	}
	got, next, err := g.model.Config.Positions(len(g.Prompt), spans)
	if err != nil {
		t.Fatal(err)
	}
	for i := range g.Response {
		got = append(got, TextPosition(next+i))
	}
	if !slices.Equal(got, g.Positions) {
		t.Errorf("got  %v\nwant %v", got, g.Positions)
	}
}

func TestVisionFeaturesEqualTransformers(t *testing.T) {
	g := loadGolden(t)
	var scratch visionScratch
	row := 0
	for i, grid := range g.grids {
		features, err := g.model.encodeImage(&scratch, g.patches[i], grid)
		if err != nil {
			t.Fatal(err)
		}
		width := g.model.Config.HiddenSize
		for token := range grid.Tokens(2) {
			if d := worst(features[token*width:], g.Features[row]); d > agreement {
				t.Errorf("image %d token %d: off by %v", i, token, d)
			}
			row++
		}
	}
	if row != len(g.Features) {
		t.Errorf("compared %d tokens of %d", row, len(g.Features))
	}
}

// prefillGolden runs the golden prompt.
func prefillGolden(t testing.TB, g *goldenFile) *prefix {
	t.Helper()
	var features [][]float32
	for i, grid := range g.grids {
		f, err := g.model.encodeImage(&visionScratch{}, g.patches[i], grid)
		if err != nil {
			t.Fatal(err)
		}
		features = append(features, f)
	}
	spans, err := g.model.Config.ImageSpans(g.Prompt, g.grids)
	if err != nil {
		t.Fatal(err)
	}
	p, err := g.model.prefill(&textScratch{}, g.Prompt, spans, features)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// feed decodes the tokens of a sequence that are not fed yet and returns the
// logits after each of them.
func feed(m *Model, q *sequence) [][]float32 {
	k := m.dims()
	var s textScratch
	var out [][]float32
	for q.fed < len(q.tokens) {
		if q.needsBlock() {
			q.blocks = append(q.blocks, newSegment(len(m.layers), k.kv, k.d, blockTokens))
		}
		m.decode(&s, []*sequence{q})
		out = append(out, slices.Clone(s.logits))
	}
	return out
}

func TestLogitsEqualTransformers(t *testing.T) {
	g := loadGolden(t)
	p := prefillGolden(t, g)
	logits := append([][]float32{p.logits}, feed(g.model, &sequence{prefix: p, tokens: g.Response})...)
	for i, step := range g.LogitSteps {
		if d := worst(logits[step], g.Logits[i]); d > agreement {
			t.Errorf("after %d response tokens: off by %v", step, d)
		}
	}
	// The same by prefilling text only: 40 tokens across the block boundary.
	text := slices.Concat(g.Prompt, g.Response)
	p, err := g.model.prefill(&textScratch{}, text[len(text)-40:], nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := worst(p.logits, g.TextLogits); d > agreement {
		t.Errorf("text: off by %v", d)
	}
}

// A sequence's logits are the same bits alone, in any company and at any place.
func TestDecodeIsBatchInvariant(t *testing.T) {
	g := loadGolden(t)
	shared := prefillGolden(t, g)
	again := prefillGolden(t, g)
	if !sameBits(shared.logits, again.logits) || !sameBits(shared.cache.data, again.cache.data) {
		t.Fatal("prefilling twice gives different bits")
	}
	other, err := g.model.prefill(&textScratch{}, []int32{1, 2, 3}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := feed(g.model, &sequence{prefix: shared, tokens: g.Response})
	k := g.model.dims()
	for _, company := range []int{1, 2, 5, 13, 47} {
		for _, place := range []int{0, company / 2, company} {
			var batch []*sequence
			for i := range company {
				p := shared
				if i%3 == 2 {
					p = other
				}
				batch = append(batch, &sequence{prefix: p, tokens: append([]int32{int32(i)}, g.Response...)})
			}
			subject := &sequence{prefix: again, tokens: g.Response}
			batch = slices.Insert(batch, place, subject)
			var s textScratch
			for step := range 4 {
				for _, q := range batch {
					if q.needsBlock() {
						q.blocks = append(q.blocks, newSegment(len(g.model.layers), k.kv, k.d, blockTokens))
					}
				}
				g.model.decode(&s, batch)
				if !sameBits(s.logits[place*k.ldv:(place+1)*k.ldv], want[step]) {
					t.Fatalf("company %d place %d step %d: other bits", company, place, step)
				}
			}
		}
	}
}
