package serve

import (
	"strings"
	"unicode/utf8"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// textState follows the text of one choice while it is generated, and looks for
// stop strings.
type textState struct {
	decoder *tokenizer.Decoder
	text    []byte
	stops   []string
	include bool   // keep the stop string in the text
	min     int    // tokens before which stop strings are not looked for
	fed     int    // tokens decoded
	stopped string // the stop string that was found
}

// feed decodes tokens that are new since the last call and tells whether a stop
// string ended the text.
func (t *textState) feed(tokens []int32) bool {
	for ; t.fed < len(tokens); t.fed++ {
		before := len(t.text)
		t.text = append(t.text, t.decoder.Next(tokens[t.fed])...)
		if t.fed+1 > t.min && t.find(before) {
			t.fed++
			return true
		}
	}
	return false
}

// find looks for the first stop string that ends in the text after before.
func (t *textState) find(before int) bool {
	best, end := -1, 0
	for _, stop := range t.stops {
		from := max(0, before-len(stop)+1)
		if i := strings.Index(string(t.text[from:]), stop); i >= 0 && (best < 0 || from+i < best) {
			best, end = from+i, from+i+len(stop)
			t.stopped = stop
		}
	}
	if best < 0 {
		return false
	}
	if t.include {
		best = end
	}
	t.text = t.text[:best]
	return true
}

// finish ends the text: an unfinished character becomes U+FFFD.
func (t *textState) finish() string {
	if t.stopped == "" {
		t.text = append(t.text, t.decoder.Flush()...)
	}
	return string(t.text)
}

// holdBack is how many bytes at the end of the text may still turn out to be
// the beginning of a stop string.
func (t *textState) holdBack() int {
	longest := 0
	if !t.include {
		for _, stop := range t.stops {
			longest = max(longest, len(stop)-1)
		}
	}
	return longest
}

// tokenTexts gives the strings that stand for single tokens in log-probability
// lists. A token whose bytes are whole characters is these; one that completes
// a character begun by the tokens before it is that character; any other is
// empty, as in vLLM.
type tokenTexts struct {
	tokens  *tokenizer.Tokenizer
	pending []byte // the unfinished character before the next token
	joined  []byte
}

// of returns the text of id if it came next.
func (t *tokenTexts) of(id int32) []byte {
	own, ok := t.tokens.Bytes(id)
	if !ok {
		return nil
	}
	if utf8.Valid(own) {
		return own
	}
	if len(t.pending) == 0 {
		return nil
	}
	t.joined = append(append(t.joined[:0], t.pending...), own...)
	if utf8.Valid(t.joined) {
		return t.joined
	}
	return nil
}

// next records that id came.
func (t *tokenTexts) next(id int32) {
	own, _ := t.tokens.Bytes(id)
	if utf8.Valid(own) {
		t.pending = t.pending[:0]
		return
	}
	t.pending = append(t.pending, own...)
	if utf8.Valid(t.pending) {
		t.pending = t.pending[:0]
		return
	}
	// Keep what may begin a character: at most its last three bytes.
	for len(t.pending) > 0 && (len(t.pending) > 3 || !beginsCharacter(t.pending)) {
		t.pending = t.pending[:copy(t.pending, t.pending[1:])]
	}
}

// beginsCharacter tells whether b may be the start of one UTF-8 character.
func beginsCharacter(b []byte) bool { return !utf8.FullRune(b) }
