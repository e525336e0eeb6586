package graph

import "github.com/uadt-train/uadt-train/internal/qwenvl"

// chunkBuilder appends pieces to one chunk.
type chunkBuilder struct {
	f     *flattener
	c     *chunk
	first map[*picture]int32 // feature row at which an image begins; an image is encoded once per chunk
}

// newChunk makes a chunk with room for rows token rows of so many rotary
// frequencies.
func newChunk(rows, frequencies int) *chunk {
	return &chunk{tokens: make([]int32, 0, rows), feature: make([]int32, 0, rows), head: make([]int32, 0, rows),
		cos: make([]float32, 0, rows*frequencies), sin: make([]float32, 0, rows*frequencies)}
}

// add appends a prompt and some of its traces.
func (b *chunkBuilder) add(p *prompt, at piece) {
	c := b.c
	s := segment{prompt: span{len(c.tokens), len(c.tokens) + len(p.group.Prompt)}}
	for i, id := range p.group.Prompt {
		b.row(id, -1, p.positions[i])
	}
	for i, image := range p.spans {
		base := b.image(p.pictures[i])
		for j, place := range p.pictures[i].place {
			row := s.prompt.from + image.Offset + j
			c.feature[row] = base + place
			c.tokens[row] = 0
		}
	}
	last := int32(len(c.head)) // head row of the prompt's last token, which predicts every trace's first
	c.head = append(c.head, int32(s.prompt.to-1))
	for t := at.from; t < at.to; t++ {
		tokens := p.group.Traces[t].Tokens
		from, first := len(c.tokens), len(c.targets)
		for i, id := range tokens {
			row := last
			if i > 0 {
				row = int32(len(c.head)) - 1
			}
			c.targets = append(c.targets, target{row: row, id: id})
			if i < len(tokens)-1 {
				c.head = append(c.head, int32(len(c.tokens)))
				b.row(id, -1, qwenvl.TextPosition(p.next+i))
			}
		}
		s.traces = append(s.traces, span{from, len(c.tokens)})
		c.traces = append(c.traces, traceRef{group: at.group, trace: t, targets: span{first, len(c.targets)}})
	}
	c.segments = append(c.segments, s)
}

// row appends a token row.
func (b *chunkBuilder) row(id, feature int32, p qwenvl.Position) {
	c := b.c
	c.tokens = append(c.tokens, id)
	c.feature = append(c.feature, feature)
	for i, axis := range b.f.axis {
		cos, sin := b.f.text.at(p[axis])
		c.cos, c.sin = append(c.cos, cos[i]), append(c.sin, sin[i])
	}
}

// image appends an image unless the chunk has it, and returns its first
// feature row.
func (b *chunkBuilder) image(p *picture) int32 {
	if row, ok := b.first[p]; ok {
		return row
	}
	v := &b.c.vision
	unit := b.f.config.Vision.MergeSize * b.f.config.Vision.MergeSize
	row := int32(v.patches / unit)
	b.first[p] = row
	shift := func(to, spans []span) []span {
		for _, s := range spans {
			to = append(to, span{s.from + v.patches, s.to + v.patches})
		}
		return to
	}
	v.windows = shift(v.windows, p.windows)
	v.frames = shift(v.frames, p.frames)
	for _, position := range p.rows {
		for _, axis := range position { // half of the frequencies turn by the row, half by the column
			cos, sin := b.f.patch.at(axis)
			v.cos = append(v.cos, cos...)
			v.sin = append(v.sin, sin...)
		}
	}
	v.pixels = append(v.pixels, p.pixels)
	v.patches += len(p.rows)
	return row
}
