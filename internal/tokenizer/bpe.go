package tokenizer

import "container/heap"

// heapFrom is the word length from which merging uses a heap: below it the
// quadratic scan is faster, above it a hostile word of a megabyte stays
// n log n.
const heapFrom = 48

// mergeWord appends the tokens of one word to ids: its bytes, of which the
// neighbouring pair of lowest rank, leftmost first, is merged until none is
// left.
func (t *Tokenizer) mergeWord(ids []int32, word string) []int32 {
	if t.whole {
		if id, ok := t.ids[spell([]byte(word))]; ok {
			return append(ids, id)
		}
	}
	start := len(ids)
	for i := range len(word) {
		if id := t.byteID[word[i]]; id >= 0 {
			ids = append(ids, id)
		}
	}
	if len(ids)-start >= heapFrom {
		return t.mergeLong(ids, start)
	}
	for {
		best, at := merge{rank: -1}, -1
		for i := start; i+1 < len(ids); i++ {
			if m, ok := t.merges[pair{ids[i], ids[i+1]}]; ok && (at < 0 || m.rank < best.rank) {
				best, at = m, i
			}
		}
		if at < 0 {
			return ids
		}
		ids[at] = best.id
		ids = append(ids[:at+1], ids[at+2:]...)
	}
}

// candidate is a possible merge of the symbol at position at with the next one.
type candidate struct {
	merge
	at   int
	pair pair
}

// candidates is a heap by rank, then position.
type candidates []candidate

func (c candidates) Len() int      { return len(c) }
func (c candidates) Swap(i, j int) { c[i], c[j] = c[j], c[i] }
func (c candidates) Less(i, j int) bool {
	if c[i].rank != c[j].rank {
		return c[i].rank < c[j].rank
	}
	return c[i].at < c[j].at
}
func (c *candidates) Push(x any) { *c = append(*c, x.(candidate)) }
func (c *candidates) Pop() any {
	old := *c
	last := old[len(old)-1]
	*c = old[:len(old)-1]
	return last
}

// mergeLong merges ids[start:] with a heap over a linked list.
func (t *Tokenizer) mergeLong(ids []int32, start int) []int32 {
	word := append([]int32(nil), ids[start:]...)
	next, prev := make([]int, len(word)), make([]int, len(word))
	for i := range word {
		next[i], prev[i] = i+1, i-1
	}
	var open candidates
	offer := func(i int) {
		if i < 0 || next[i] >= len(word) {
			return
		}
		p := pair{word[i], word[next[i]]}
		if m, ok := t.merges[p]; ok {
			heap.Push(&open, candidate{m, i, p})
		}
	}
	for i := range word {
		offer(i)
	}
	for open.Len() > 0 {
		c := heap.Pop(&open).(candidate)
		// Skip a candidate whose symbols have been merged since.
		if word[c.at] != c.pair.left || next[c.at] >= len(word) || word[next[c.at]] != c.pair.right {
			continue
		}
		gone := next[c.at]
		word[c.at], word[gone] = c.id, -1
		next[c.at] = next[gone]
		if next[c.at] < len(word) {
			prev[next[c.at]] = c.at
		}
		offer(prev[c.at])
		offer(c.at)
	}
	ids = ids[:start]
	for i := 0; i < len(word); i = next[i] {
		ids = append(ids, word[i])
	}
	return ids
}
