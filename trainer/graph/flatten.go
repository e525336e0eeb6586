package graph

import (
	"context"
	"errors"
	"fmt"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/trainer"
)

// flattener turns batches into chunks.
type flattener struct {
	config   qwenvl.Config
	pictures *pictures
	text     *angles // one row of head size / 2 frequencies
	patch    *angles // one row of vision head size / 4 frequencies, for rows and for columns
	axis     []int   // of every text frequency: time, height or width
}

// newFlattener makes the tables of config.
func newFlattener(config qwenvl.Config, images *pictures) *flattener {
	f := &flattener{config: config, pictures: images,
		text:  newAngles(config.RopeTheta, config.HeadDim/2),
		patch: newAngles(10000, config.Vision.HeadDim()/4)}
	for axis, count := range config.MRopeSection {
		for range count {
			f.axis = append(f.axis, axis)
		}
	}
	return f
}

// prompt is a group's prompt with everything that depends on it alone.
type prompt struct {
	group     *trainer.Group
	pictures  []*picture
	spans     []qwenvl.ImageSpan
	positions []qwenvl.Position
	next      int
}

// prompt places the images of a group and checks that all of it fits the model.
func (f *flattener) prompt(g *trainer.Group, images map[string]found) (*prompt, error) {
	p := &prompt{group: g}
	var grids []qwenvl.Grid
	for _, image := range g.Images {
		at := images[image.Digest]
		if at.err != nil {
			return nil, at.err
		}
		p.pictures = append(p.pictures, at.picture)
		grids = append(grids, at.picture.grid)
	}
	if len(g.Prompt) == 0 {
		return nil, errors.New("the prompt is empty")
	}
	if err := f.checkIDs("prompt", g.Prompt); err != nil {
		return nil, err
	}
	for i, t := range g.Traces {
		if err := f.checkIDs(fmt.Sprintf("trace %d", i), t.Tokens); err != nil {
			return nil, err
		}
		if t.Mask != nil && len(t.Mask) != len(t.Tokens) {
			return nil, fmt.Errorf("trace %d: mask of %d for %d tokens", i, len(t.Mask), len(t.Tokens))
		}
		if t.RolloutLogprobs != nil && len(t.RolloutLogprobs) != len(t.Tokens) {
			return nil, fmt.Errorf("trace %d: %d rollout log-probabilities for %d tokens", i, len(t.RolloutLogprobs), len(t.Tokens))
		}
		if n := len(g.Prompt) + len(t.Tokens); n > f.config.MaxPositions {
			return nil, fmt.Errorf("trace %d: prompt and response have %d tokens, the model takes %d", i, n, f.config.MaxPositions)
		}
	}
	var err error
	if p.spans, err = f.config.ImageSpans(g.Prompt, grids); err != nil {
		return nil, err
	}
	p.positions, p.next, err = f.config.Positions(len(g.Prompt), p.spans)
	return p, err
}

// checkIDs refuses ids that the model has no embedding for.
func (f *flattener) checkIDs(what string, ids []int32) error {
	for i, id := range ids {
		if id < 0 || int(id) >= f.config.VocabSize {
			return fmt.Errorf("%s: token %d is %d, the vocabulary has %d", what, i, id, f.config.VocabSize)
		}
	}
	return nil
}

// piece is a run of traces of one group, as trainer.Part, with its cost.
type piece struct {
	group, from, to int
	rows            int
}

// rows counts the token rows of a piece.
func (f *flattener) rows(g *trainer.Group, from, to int) int {
	n := len(g.Prompt)
	for _, t := range g.Traces[from:to] {
		n += max(len(t.Tokens)-1, 0)
	}
	return n
}

// pieces cuts the parts of a plan (whole groups without one) so that none has
// more than limit rows, single traces excepted.
func (f *flattener) pieces(b *trainer.Batch, limit int) ([]piece, error) {
	parts := b.Plan.Parts
	if len(parts) == 0 {
		for i, g := range b.Groups {
			parts = append(parts, trainer.Part{Group: i, To: len(g.Traces)})
		}
	} else if err := b.Plan.Check(b.Groups); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	var out []piece
	for _, p := range parts {
		g := &b.Groups[p.Group]
		for from := p.From; from < p.To; {
			to := from + 1
			for to < p.To && f.rows(g, from, to+1) <= limit {
				to++
			}
			out = append(out, piece{group: p.Group, from: from, to: to, rows: f.rows(g, from, to)})
			from = to
		}
	}
	return out, nil
}

// flatten cuts a batch into chunks of about limit rows, their number a multiple
// of lanes. It depends on the batch alone.
func (f *flattener) flatten(ctx context.Context, b *trainer.Batch, limit, lanes int) ([]*chunk, error) {
	var digests []string
	for _, g := range b.Groups {
		for _, image := range g.Images {
			digests = append(digests, image.Digest)
		}
	}
	images := f.pictures.all(ctx, digests, f.config.Vision)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	prompts := make([]*prompt, len(b.Groups))
	for i := range b.Groups {
		p, err := f.prompt(&b.Groups[i], images)
		if err != nil {
			return nil, &trainer.GroupError{Group: b.Groups[i].ID, Err: err}
		}
		prompts[i] = p
	}
	pieces, err := f.pieces(b, limit)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, p := range pieces {
		total += p.rows
	}
	if total == 0 {
		return nil, errors.New("the batch has no traces")
	}
	count := (total + limit - 1) / limit
	count = (count + lanes - 1) / lanes * lanes
	chunks, at := make([]*chunk, count), 0
	pieceOf, rows := make([]int, len(pieces)), make([]int, count)
	for k, p := range pieces {
		pieceOf[k] = min((2*at+p.rows)*count/(2*total), count-1) // where the middle of the piece falls
		rows[pieceOf[k]] += p.rows
		at += p.rows
	}
	builders := make([]*chunkBuilder, count)
	for i := range chunks {
		chunks[i] = newChunk(rows[i], len(f.axis))
		builders[i] = &chunkBuilder{f: f, c: chunks[i], first: map[*picture]int32{}}
	}
	for k, p := range pieces {
		builders[pieceOf[k]].add(prompts[p.group], p)
	}
	return chunks, nil
}
