package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// Decode turns ids into text. Bytes that do not form UTF-8 become U+FFFD, one
// for each maximal prefix of a character (what Unicode recommends and the
// reference does). Unused ids decode to nothing; special tokens too when
// skipSpecial is set.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	d := t.NewDecoder(skipSpecial)
	var s strings.Builder
	for _, id := range ids {
		s.WriteString(d.Next(id))
	}
	s.WriteString(d.Flush())
	return s.String()
}

// Decoder decodes one stream of ids as they come. What it returns, joined, is
// what Decode returns for all of them; no piece ends within a character.
type Decoder struct {
	t           *Tokenizer
	skipSpecial bool
	pending     []byte // the beginning of a character, at most 3 bytes
}

// NewDecoder starts a stream.
func (t *Tokenizer) NewDecoder(skipSpecial bool) *Decoder {
	return &Decoder{t: t, skipSpecial: skipSpecial}
}

// Next takes one id and returns the text that is now certain; it is empty while
// a character is incomplete.
func (d *Decoder) Next(id int32) string {
	b, ok := d.t.Bytes(id)
	if !ok || d.skipSpecial && d.t.special[id] {
		return ""
	}
	if len(d.pending) == 0 && utf8.Valid(b) {
		return string(b)
	}
	text, rest := decodeUTF8(append(d.pending, b...), false)
	d.pending = rest
	return text
}

// Flush ends the stream: an incomplete character becomes U+FFFD.
func (d *Decoder) Flush() string {
	text, _ := decodeUTF8(d.pending, true)
	d.pending = nil
	return text
}

// decodeUTF8 reads b, replacing each maximal prefix of a character that goes no
// further by U+FFFD; a prefix at the end is kept as rest unless last is set.
func decodeUTF8(b []byte, last bool) (text string, rest []byte) {
	var s strings.Builder
	for len(b) > 0 {
		if r, n := utf8.DecodeRune(b); r != utf8.RuneError || n == 3 {
			s.Write(b[:n])
			b = b[n:]
			continue
		}
		n, complete := brokenPrefix(b)
		if !complete && !last {
			return s.String(), append([]byte(nil), b...)
		}
		s.WriteRune(utf8.RuneError)
		b = b[n:]
	}
	return s.String(), nil
}

// brokenPrefix is the length of the longest prefix of b that begins some
// character, at least 1; ended is false when b ends before that is decided.
func brokenPrefix(b []byte) (n int, ended bool) {
	need, low, high := 0, byte(0x80), byte(0xbf)
	switch c := b[0]; {
	case c >= 0xc2 && c <= 0xdf:
		need = 1
	case c >= 0xe0 && c <= 0xef:
		need = 2
		if c == 0xe0 {
			low = 0xa0 // shorter forms exist
		} else if c == 0xed {
			high = 0x9f // surrogates
		}
	case c >= 0xf0 && c <= 0xf4:
		need = 3
		if c == 0xf0 {
			low = 0x90
		} else if c == 0xf4 {
			high = 0x8f // above U+10FFFF
		}
	default:
		return 1, true
	}
	for n = 1; n <= need; n++ {
		if n == len(b) {
			return n, false
		}
		if b[n] < low || b[n] > high {
			return n, true
		}
		low, high = 0x80, 0xbf
	}
	return n, true // not reached: the character would be whole
}
