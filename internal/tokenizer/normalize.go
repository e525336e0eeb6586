package tokenizer

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// The reference tokenizer normalises by the tables of Unicode 9, while x/text
// has later ones: marks that were added since are plain characters to it, and
// some pairs do not compose. The ids must be the same, so newer marks and
// composing characters are kept as they are, and nothing composes or moves
// across them. (Found by comparing all code points, and all decompositions of
// Unicode 17, with the reference; tests/python repeats it for the code points,
// in the empty planes for a sample.)

// asIs holds the characters that the reference does not know how to compose or
// to order.
var asIs = table(
	0x07fd, 0x07fd, 0x0897, 0x089f, 0x08ca, 0x08d3, 0x09fe, 0x09fe, 0x0c3c, 0x0c3c, 0x0d3b, 0x0d3c,
	0x0eba, 0x0eba, 0x1715, 0x1715, 0x1abf, 0x1add, 0x1ae0, 0x1aeb, 0x1df6, 0x1dfa, 0xa82c, 0xa82c,
	0x105d2, 0x105d2, 0x105da, 0x105da, 0x10d24, 0x10d27, 0x10d69, 0x10d6d, 0x10eab, 0x10eac,
	0x10efa, 0x10efb, 0x10efd, 0x10eff, 0x10f46, 0x10f50, 0x10f82, 0x10f85, 0x11070, 0x11070,
	0x1133b, 0x1133b, 0x113b8, 0x113b8, 0x113bb, 0x113bb, 0x113c2, 0x113c2, 0x113c9, 0x113c9,
	0x113ce, 0x113d0, 0x1145e, 0x1145e, 0x11839, 0x1183a, 0x11930, 0x11930, 0x1193d, 0x1193e,
	0x11943, 0x11943, 0x119e0, 0x119e0, 0x11a34, 0x11a34, 0x11a47, 0x11a47, 0x11a99, 0x11a99,
	0x11d42, 0x11d42, 0x11d44, 0x11d45, 0x11d97, 0x11d97, 0x11f41, 0x11f42, 0x1611e, 0x16129,
	0x1612f, 0x1612f, 0x16d67, 0x16d67, 0x16ff0, 0x16ff1, 0x1e08f, 0x1e08f, 0x1e130, 0x1e136,
	0x1e2ae, 0x1e2ae, 0x1e2ec, 0x1e2ef, 0x1e4ec, 0x1e4ef, 0x1e5ee, 0x1e5ef, 0x1e6e3, 0x1e6e3,
	0x1e6e6, 0x1e6e6, 0x1e6ee, 0x1e6ef, 0x1e6f5, 0x1e6f5,
)

// table makes a range table of pairs of first and last character, in order.
func table(ends ...rune) *unicode.RangeTable {
	t := &unicode.RangeTable{}
	for i := 0; i < len(ends); i += 2 {
		if ends[i+1] <= 0xffff {
			t.R16 = append(t.R16, unicode.Range16{Lo: uint16(ends[i]), Hi: uint16(ends[i+1]), Stride: 1})
		} else {
			t.R32 = append(t.R32, unicode.Range32{Lo: uint32(ends[i]), Hi: uint32(ends[i+1]), Stride: 1})
		}
	}
	return t
}

// normalize is the reference's NFC.
func normalize(text string) string {
	// Everything below U+0300 is in normal form; most texts end here.
	if norm.NFC.IsNormalString(text) && strings.IndexFunc(text, isAsIs) < 0 {
		return text
	}
	var out strings.Builder
	out.Grow(len(text))
	for len(text) > 0 {
		at := strings.IndexFunc(text, isAsIs)
		if at < 0 {
			at = len(text)
		}
		out.WriteString(norm.NFC.String(text[:at]))
		rest := strings.TrimLeftFunc(text[at:], isAsIs)
		out.WriteString(text[at : len(text)-len(rest)])
		text = rest
	}
	return out.String()
}

func isAsIs(r rune) bool { return r >= 0x07fd && unicode.Is(asIs, r) }
