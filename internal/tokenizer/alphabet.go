package tokenizer

import "strings"

// The byte-level alphabet writes every byte as one printable character, so that
// a vocabulary of byte strings is a JSON object of readable keys: the printable
// Latin-1 bytes stand for themselves, the other 68 for U+0100 and up in order.
// (GPT-2's bytes_to_unicode.)

// byteRune maps a byte to its character; runeByte is its inverse.
var byteRune, runeByte = alphabet()

func alphabet() ([256]rune, map[rune]byte) {
	var forward [256]rune
	back := make(map[rune]byte, 256)
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		printable := b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae
		if !printable {
			r = next
			next++
		}
		forward[b] = r
		back[r] = byte(b)
	}
	return forward, back
}

// spell writes bytes in the byte-level alphabet.
func spell(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		s.WriteRune(byteRune[c])
	}
	return s.String()
}

// unspell reads a token's bytes back. A token with a character outside the
// alphabet stands for its own UTF-8 bytes, as in the reference decoder. The
// result is never nil.
func unspell(token string) []byte {
	out := make([]byte, 0, len(token))
	for _, r := range token {
		b, ok := runeByte[r]
		if !ok {
			return append([]byte{}, token...)
		}
		out = append(out, b)
	}
	return out
}
