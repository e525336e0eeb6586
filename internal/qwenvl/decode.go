package qwenvl

import (
	"math"

	"github.com/uadt-train/uadt-train/internal/qwenvl/kernel"
)

// blockTokens is the number of response positions in one block of the
// key-value cache.
const blockTokens = 64

// sequence is the decoding state of one trace: a shared prompt, own blocks.
type sequence struct {
	prefix *prefix
	blocks []segment // of blockTokens positions each
	fed    int       // response tokens whose keys and values are in blocks
	tokens []int32   // the response so far
}

// needsBlock tells whether the next token needs another block.
func (q *sequence) needsBlock() bool { return q.fed == len(q.blocks)*blockTokens }

// length is the number of positions that the next token attends to.
func (q *sequence) length() int { return kernel.Pad(len(q.prefix.tokens)) + kernel.Pad(q.fed+1) }

// decodeRows is how many traces a goroutine decodes at a time: enough rows for
// the kernel, few enough that they stay in the cache.
const decodeRows = 48

// decode feeds the next token of every sequence and leaves the logits that
// follow in s.logits, [len(batch)][Pad(VocabSize)]. Each sequence has room for
// one more position. Sequences with the same prefix should stand together.
func (m *Model) decode(s *textScratch, batch []*sequence) {
	k := m.dims()
	n := len(batch)
	s.reserve(k, n)
	s.q, s.out = grow(s.q, n*k.group*k.d), grow(s.out, n*k.group*k.wide)
	longest := 0
	for r, q := range batch {
		id := int(q.tokens[q.fed])
		copy(s.x[r*k.ld:(r+1)*k.ld], m.embedding[id*k.h:(id+1)*k.h])
		clear(s.x[r*k.ld+k.h : (r+1)*k.ld])
		m.rope.angles(s.cos[r*k.half:(r+1)*k.half], s.sin[r*k.half:(r+1)*k.half], TextPosition(q.prefix.next+q.fed))
		longest = max(longest, q.length())
	}
	s.scores = grow(s.scores, n*k.group*longest)
	for i := range m.layers {
		layer := &m.layers[i]
		m.layerIn(s, k, layer, n)
		for head := range k.kv {
			m.attendOwn(s, k, batch, place{i, head})
		}
		m.layerOut(s, k, layer, 0, n)
	}
	m.headRows(s, k, 0, n)
	for _, q := range batch {
		q.fed++
	}
}

// attendOwn stores the new keys and values of one head and attends, run by run
// of sequences that share a prefix.
func (m *Model) attendOwn(s *textScratch, k dims, batch []*sequence, at place) {
	keyAt, valueAt := (k.queries+at.head)*k.d, (k.queries+k.kv+at.head)*k.d
	for r, q := range batch {
		row := s.qkv[r*k.ldq:]
		rotate(s.key, row[keyAt:keyAt+k.d], s.cos[r*k.half:(r+1)*k.half], s.sin[r*k.half:(r+1)*k.half])
		q.blocks[q.fed/blockTokens].put(at, q.fed%blockTokens, s.key, row[valueAt:])
		m.rotateQueries(s, k, r*k.group, r, at.head)
	}
	clear(s.out)
	for first := 0; first < len(batch); {
		last := first + 1
		for last < len(batch) && batch[last].prefix == batch[first].prefix {
			last++
		}
		m.attendRun(s, k, batch[first:last], first, at)
		first = last
	}
	for r := range batch {
		m.gatherHeads(s, k, r*k.group, r, at.head)
	}
}

// attendRun attends sequences that share a prefix: one product with the
// prompt's keys for all of them, then each with its own. A score row holds the
// prompt's positions, padded, and then the response's, padded; the gaps are
// -Inf, so that they take no probability.
func (m *Model) attendRun(s *textScratch, k dims, run []*sequence, first int, at place) {
	shared := run[0].prefix
	prompt, padded := len(shared.tokens), kernel.Pad(len(shared.tokens))
	lds := 0
	for _, q := range run {
		lds = max(lds, q.length())
	}
	scores := rows{s.scores, lds}
	queries := rows{s.q[first*k.group*k.d:], k.d}
	out := rows{s.out[first*k.group*k.wide:], k.wide}
	keys, values := shared.cache.head(at)
	scoreKeys(scores, queries, len(run)*k.group, keys, prompt)
	scale := float32(1 / math.Sqrt(float64(k.d)))
	for i, q := range run {
		own := s.scores[i*k.group*lds:]
		for from := 0; from <= q.fed; from += blockTokens {
			keys, _ := q.blocks[from/blockTokens].head(at)
			scoreKeys(rows{own[padded+from:], lds}, rows{queries.data[i*k.group*k.d:], k.d}, k.group, keys, min(blockTokens, q.fed+1-from))
		}
		for g := range k.group {
			row := own[g*lds : g*lds+q.length()]
			fill(row[prompt:padded], minusInf)
			fill(row[padded+q.fed+1:], minusInf)
			inverse := 1 / kernel.Softmax(row, scale)
			for j := range row {
				row[j] *= inverse
			}
		}
	}
	addValues(out, scores, len(run)*k.group, values, prompt)
	for i, q := range run {
		own := s.scores[i*k.group*lds:]
		for from := 0; from <= q.fed; from += blockTokens {
			_, values := q.blocks[from/blockTokens].head(at)
			addValues(rows{out.data[i*k.group*k.wide:], k.wide}, rows{own[padded+from:], lds}, k.group, values, min(blockTokens, q.fed+1-from))
		}
	}
}
