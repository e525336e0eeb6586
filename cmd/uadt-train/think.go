package main

import (
	"bytes"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// thinkSpan returns a function that finds the tokens [from, to) of a response
// that lie between the think tags, the tags themselves left out. A tag may be
// cut anywhere by the vocabulary, so tokens are placed by the bytes they stand
// for. Without an opening tag the span is empty; without a closing one it
// reaches to the end.
func thinkSpan(t *tokenizer.Tokenizer) func(tokens []int32) (from, to int) {
	opening, closing := []byte("<think>"), []byte("</think>")
	return func(tokens []int32) (from, to int) {
		var text []byte
		starts := make([]int, len(tokens)+1)
		for i, id := range tokens {
			starts[i] = len(text)
			piece, _ := t.Bytes(id) // an id outside the vocabulary stands for no bytes
			text = append(text, piece...)
		}
		starts[len(tokens)] = len(text)
		begin := bytes.Index(text, opening)
		if begin < 0 {
			return 0, 0
		}
		begin += len(opening)
		end := len(text)
		if n := bytes.Index(text[begin:], closing); n >= 0 {
			end = begin + n
		}
		for from < len(tokens) && starts[from] < begin {
			from++
		}
		to = from
		for to < len(tokens) && starts[to+1] <= end {
			to++
		}
		return from, to
	}
}
