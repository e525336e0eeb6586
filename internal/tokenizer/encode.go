package tokenizer

import (
	"fmt"
	"strings"
)

// Encode turns text into ids. Added tokens, special ones too, are recognised in
// the text wherever they stand, as the reference does. Bytes that are not UTF-8
// become U+FFFD. The result is nil for the empty text.
func (t *Tokenizer) Encode(text string) []int32 {
	text = strings.ToValidUTF8(text, "\uFFFD")
	var ids []int32
	for from := 0; from < len(text); {
		at, found := t.raw.next(text, from)
		ids = t.encodePiece(ids, normalize(text[from:at]))
		if found == nil {
			break
		}
		ids = append(ids, found.ID)
		from = at + len(found.Content)
	}
	return ids
}

// encodePiece appends the ids of normalised text between raw added tokens.
func (t *Tokenizer) encodePiece(ids []int32, text string) []int32 {
	for from := 0; from < len(text); {
		at, found := t.normalized.next(text, from)
		for i := from; i < at; {
			j := wordEnd(text[:at], i)
			ids = t.mergeWord(ids, text[i:j])
			i = j
		}
		if found == nil {
			break
		}
		ids = append(ids, found.ID)
		from = at + len(found.Content)
	}
	return ids
}

// PadCountError says that a prompt has another number of image pads than there
// are images.
type PadCountError struct{ Pads, Images int }

// Error implements error.
func (e *PadCountError) Error() string {
	return fmt.Sprintf("prompt has %d image pads for %d images", e.Pads, e.Images)
}

// ExpandPads replaces the i-th occurrence of pad in ids by counts[i] pads:
// what Qwen2.5-VL's processor does with image tokens. It fails with a
// *PadCountError if the pads are not as many as the counts.
func ExpandPads(ids []int32, pad int32, counts []int) ([]int32, error) {
	pads, total := 0, len(ids)
	for _, id := range ids {
		if id == pad {
			pads++
		}
	}
	if pads != len(counts) {
		return nil, &PadCountError{pads, len(counts)}
	}
	for i, n := range counts {
		if n < 1 {
			return nil, fmt.Errorf("image %d has %d tokens, want at least 1", i, n)
		}
		total += n - 1
	}
	out, image := make([]int32, 0, total), 0
	for _, id := range ids {
		repeat := 1
		if id == pad {
			repeat = counts[image]
			image++
		}
		for range repeat {
			out = append(out, id)
		}
	}
	return out, nil
}
