package tokenizer

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// matcherOf is a backtracking matcher: it calls next with every place where a
// match that begins at i can end, best first, until next accepts one.
type matcherOf func(s []rune, i int, next func(int) bool) bool

// one matches a character that ok accepts.
func one(ok func(rune) bool) matcherOf {
	return func(s []rune, i int, next func(int) bool) bool { return i < len(s) && ok(s[i]) && next(i+1) }
}

// repeat is m{least,most}, greedy.
func repeat(m matcherOf, least, most int) matcherOf {
	var from func(s []rune, i, n int, next func(int) bool) bool
	from = func(s []rune, i, n int, next func(int) bool) bool {
		if n < most && m(s, i, func(j int) bool { return from(s, j, n+1, next) }) {
			return true
		}
		return n >= least && next(i)
	}
	return func(s []rune, i int, next func(int) bool) bool { return from(s, i, 0, next) }
}

// sequence matches one after the other.
func sequence(list ...matcherOf) matcherOf {
	if len(list) == 0 {
		return func(_ []rune, i int, next func(int) bool) bool { return next(i) }
	}
	return func(s []rune, i int, next func(int) bool) bool {
		return list[0](s, i, func(j int) bool { return sequence(list[1:]...)(s, j, next) })
	}
}

// either tries the alternatives in order.
func either(list ...matcherOf) matcherOf {
	return func(s []rune, i int, next func(int) bool) bool {
		for _, m := range list {
			if m(s, i, next) {
				return true
			}
		}
		return false
	}
}

// folded matches a text without regard to case.
func folded(text string) matcherOf {
	var list []matcherOf
	for _, r := range text {
		list = append(list, one(func(c rune) bool { return strings.EqualFold(string(c), string(r)) }))
	}
	return sequence(list...)
}

// pattern is SplitPattern written with these pieces, alternative by alternative.
func pattern() matcherOf {
	const many = 1 << 20
	isBreak := func(r rune) bool { return r == '\r' || r == '\n' }
	notWord := func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) }
	mark := func(r rune) bool { return notWord(r) && !unicode.IsSpace(r) }
	blank := one(unicode.IsSpace)
	notBeforeVisible := func(s []rune, i int, next func(int) bool) bool {
		return (i == len(s) || unicode.IsSpace(s[i])) && next(i)
	}
	return either(
		either(folded("'s"), folded("'t"), folded("'re"), folded("'ve"), folded("'m"), folded("'ll"), folded("'d")),
		sequence(repeat(one(func(r rune) bool { return notWord(r) && !isBreak(r) }), 0, 1), repeat(one(unicode.IsLetter), 1, many)),
		one(unicode.IsNumber),
		sequence(repeat(one(func(r rune) bool { return r == ' ' }), 0, 1), repeat(one(mark), 1, many), repeat(one(isBreak), 0, many)),
		sequence(repeat(blank, 0, many), repeat(one(isBreak), 1, many)),
		sequence(repeat(blank, 1, many), notBeforeVisible),
		repeat(blank, 1, many),
	)
}

func TestTheScannerIsThePattern(t *testing.T) {
	p := pattern()
	alphabet := []rune("ab'sStTrReEvVmMlLdDſ1٣½ .,!?<|>\t\n\r\v\u00a0\u3000é眼\u0301👩")
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.RuneFrom(alphabet), 1, 30, -1).Draw(t, "text")
		runes := []rune(text)
		for i, at := 0, 0; i < len(text); {
			want := -1
			p(runes, at, func(j int) bool { want = j; return true })
			if want <= at {
				t.Fatalf("the pattern matches nothing at %d of %q", at, text)
			}
			end := wordEnd(text, i)
			if n := utf8.RuneCountInString(text[i:end]); n != want-at {
				t.Fatalf("%q at %d: the scanner takes %q, the pattern %q", text, i, text[i:end], string(runes[at:want]))
			}
			i, at = end, want
		}
	})
}

func TestTheAlphabetIsOneToOne(t *testing.T) {
	seen := map[rune]bool{}
	for b := range 256 {
		r := byteRune[b]
		if seen[r] || !unicode.IsPrint(r) || r == ' ' {
			t.Errorf("byte %d is %q", b, r)
		}
		seen[r] = true
		if got := unspell(spell([]byte{byte(b)})); len(got) != 1 || got[0] != byte(b) {
			t.Errorf("byte %d comes back as %v", b, got)
		}
	}
	// GPT-2's: the space is Ġ, the line break Ċ, and what can be read stays.
	if spell([]byte(" \nA")) != "ĠĊA" {
		t.Errorf("spelt %q", spell([]byte(" \nA")))
	}
	// A token with other characters stands for itself.
	if got := string(unspell("Ġ眼")); got != "Ġ眼" {
		t.Errorf("%q", got)
	}
	if unspell("") == nil {
		t.Error("an empty spelling has no bytes, not nil")
	}
}

func TestCharactersKeptAsTheyAre(t *testing.T) {
	for _, r := range []rune{0x0897, 0x08d3, 0x1abf, 0x11930, 0x1e6f5} {
		if !isAsIs(r) {
			t.Errorf("%#x", r)
		}
	}
	for _, r := range []rune{'a', 0x301, 0x08d4, 0x0896, 0x1abe, 0x11931, 0x1e6f6} {
		if isAsIs(r) {
			t.Errorf("%#x", r)
		}
	}
	last := rune(-1)
	for _, x := range asIs.R16 {
		if rune(x.Lo) <= last || x.Hi < x.Lo {
			t.Errorf("range %#x is out of order", x.Lo)
		}
		last = rune(x.Hi)
	}
	for _, x := range asIs.R32 {
		if rune(x.Lo) <= last || x.Hi < x.Lo {
			t.Errorf("range %#x is out of order", x.Lo)
		}
		last = rune(x.Hi)
	}
}
