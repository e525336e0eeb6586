package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// SplitPattern is the regular expression by which Qwen2 cuts text into words.
// It is recognised in tokenizer.json, not interpreted: wordEnd is a hand-written
// scanner of the same language, one pass without backtracking.
const SplitPattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

// class is what the pattern distinguishes in a character.
type class uint8

const (
	other   class = iota // none of the below
	letter               // \p{L}
	number               // \p{N}
	space                // \s but not \r \n
	newline              // \r \n
	end                  // behind the text
)

// classify reads the character of text at i and its length in bytes.
func classify(text string, i int) (class, int) {
	if i >= len(text) {
		return end, 0
	}
	r, n := utf8.DecodeRuneInString(text[i:])
	switch {
	case r == '\r' || r == '\n':
		return newline, n
	case unicode.IsSpace(r):
		return space, n
	case unicode.IsLetter(r):
		return letter, n
	case unicode.IsNumber(r):
		return number, n
	}
	return other, n
}

// run skips characters of class c from i on.
func run(text string, i int, c class) int {
	for {
		got, n := classify(text, i)
		if got != c {
			return i
		}
		i += n
	}
}

// wordEnd returns where the word that begins at i ends; i < len(text). The
// alternatives are tried in the pattern's order.
func wordEnd(text string, i int) int {
	if n := contraction(text[i:]); n > 0 {
		return i + n
	}
	c, n := classify(text, i)
	after, m := classify(text, i+n)
	switch {
	case c == letter:
		return run(text, i, letter)
	case after == letter && (c == other || c == space): // [^\r\n\p{L}\p{N}]\p{L}+
		return run(text, i+n, letter)
	case c == number:
		return i + n
	case c == other:
		return run(text, run(text, i, other), newline)
	case text[i] == ' ' && after == other:
		return run(text, run(text, i+n+m, other), newline)
	}
	return blankEnd(text, i)
}

// blankEnd ends a word of white space that begins at i: behind the last line
// break of the run if there is one (\s*[\r\n]+), else before its last character
// if a visible one follows (\s+(?!\S)), but never empty (\s+).
func blankEnd(text string, i int) int {
	j, last, lineEnd := i, i, -1
	for {
		c, n := classify(text, j)
		if c != space && c != newline {
			break
		}
		last = j
		j += n
		if c == newline {
			lineEnd = j
		}
	}
	switch {
	case lineEnd >= 0:
		return lineEnd
	case j == len(text) || last == i:
		return j
	}
	return last
}

// contraction is the length of an English contraction at the start of text, or
// 0. The long s (U+017F) folds to s.
func contraction(text string) int {
	if len(text) < 2 || text[0] != '\'' {
		return 0
	}
	switch text[1] | 0x20 {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v':
		if len(text) > 2 && text[2]|0x20 == 'e' {
			return 3
		}
	case 'l':
		if len(text) > 2 && text[2]|0x20 == 'l' {
			return 3
		}
	}
	if len(text) > 2 && text[1:3] == "ſ" {
		return 3
	}
	return 0
}
