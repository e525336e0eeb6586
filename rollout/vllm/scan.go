package vllm

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// deepest is how deeply nested a response may be.
const deepest = 64

// scanner reads JSON in one pass without building a tree: a response of
// 8 x 4096 tokens with log-probabilities is 2.8 MB, of which a few kilobytes of
// numbers are wanted. The first error sticks; after it every method returns
// zero values, so that callers check once at the end.
//
// It accepts every valid JSON text and refuses what is cut off. It does not
// validate what it skips beyond strings and nesting.
type scanner struct {
	data  []byte
	at    int
	depth int
	err   error
}

func (s *scanner) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("byte %d: %w", s.at, fmt.Errorf(format, args...))
	}
}

// next skips white space and returns the byte at hand, 0 at the end.
func (s *scanner) next() byte {
	for s.at < len(s.data) {
		c := s.data[s.at]
		if c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
		s.at++
	}
	return 0
}

// take consumes c, which must be next.
func (s *scanner) take(c byte) bool {
	if s.err != nil {
		return false
	}
	if got := s.next(); got != c {
		if s.at >= len(s.data) {
			s.fail("the text ends where %q is due", c)
		} else {
			s.fail("%q where %q is due", got, c)
		}
		return false
	}
	s.at++
	return true
}

// null consumes a null, if that is next.
func (s *scanner) null() bool {
	if s.err == nil && s.next() == 'n' && bytes.HasPrefix(s.data[s.at:], []byte("null")) {
		s.at += 4
		return true
	}
	return false
}

// object calls each for every key, which must consume the value. Keys are raw:
// one with an escape is no key we know.
func (s *scanner) object(each func(key []byte)) {
	s.items('{', '}', func() {
		key := s.raw()
		if s.take(':') {
			each(key)
		}
	})
}

// array calls each for every element, which must consume it.
func (s *scanner) array(each func()) { s.items('[', ']', each) }

// items reads a bracketed list.
func (s *scanner) items(opens, closes byte, each func()) {
	if !s.take(opens) {
		return
	}
	if s.depth++; s.depth > deepest {
		s.fail("nested more than %d deep", deepest)
		return
	}
	if s.next() == closes {
		s.at++
		s.depth--
		return
	}
	for s.err == nil {
		each()
		if s.err != nil {
			return
		}
		if s.next() == closes {
			s.at++
			s.depth--
			return
		}
		s.take(',')
	}
}

// raw reads a string and returns it still escaped.
func (s *scanner) raw() []byte {
	if !s.take('"') {
		return nil
	}
	start := s.at
	for s.at < len(s.data) {
		switch s.data[s.at] {
		case '"':
			s.at++
			return s.data[start : s.at-1]
		case '\\':
			s.at++
		}
		s.at++
	}
	s.at = len(s.data)
	s.fail("the text ends within a string")
	return nil
}

// text reads a string and unescapes it. Half of a surrogate pair and bytes that
// are no UTF-8 become U+FFFD.
func (s *scanner) text() string {
	raw := s.raw()
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(bytes.ToValidUTF8(raw, []byte("\uFFFD")))
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			continue
		}
		i++ // raw never ends in a lone backslash
		switch c := raw[i]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, used := unescapeRune(raw[i-1:])
			if used == 0 {
				s.fail("bad escape \\u")
				return ""
			}
			out = utf8.AppendRune(out, r)
			i += used - 2
		default:
			s.fail("bad escape \\%c", c)
			return ""
		}
	}
	return string(bytes.ToValidUTF8(out, []byte("\uFFFD")))
}

// unescapeRune reads \uXXXX, or two of them that form a surrogate pair, at the
// start of raw. used is 0 if there is none.
func unescapeRune(raw []byte) (r rune, used int) {
	first := hex4(raw)
	if first < 0 {
		return 0, 0
	}
	if utf16.IsSurrogate(first) {
		if second := hex4(raw[6:]); second >= 0 {
			if r := utf16.DecodeRune(first, second); r != utf8.RuneError {
				return r, 12
			}
		}
		return utf8.RuneError, 6
	}
	return first, 6
}

// hex4 reads \uXXXX at the start of raw, -1 if that is not there.
func hex4(raw []byte) rune {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return -1
	}
	v, err := strconv.ParseUint(string(raw[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(v)
}

// number returns the bytes of a number.
func (s *scanner) number() []byte {
	if s.err != nil {
		return nil
	}
	s.next()
	start := s.at
	for s.at < len(s.data) {
		c := s.data[s.at]
		if (c < '0' || c > '9') && c != '-' && c != '.' && c != 'e' && c != 'E' && c != '+' {
			break
		}
		s.at++
	}
	if start == s.at {
		s.fail("no number where one is due")
	}
	return s.data[start:s.at]
}

// float reads a finite number.
func (s *scanner) float() float64 {
	digits := s.number()
	if s.err != nil {
		return 0
	}
	v, err := strconv.ParseFloat(string(digits), 64)
	if err != nil {
		s.fail("%q is no finite number", digits)
	}
	return v
}

// int reads a whole number without exponent.
func (s *scanner) int() int64 {
	digits := s.number()
	if s.err != nil {
		return 0
	}
	v, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil {
		s.fail("%q is no whole number", digits)
	}
	return v
}

// skip passes over one value.
func (s *scanner) skip() {
	if s.err != nil {
		return
	}
	switch s.next() {
	case '"':
		s.raw()
		return
	case '{', '[':
	default:
		s.scalar()
		return
	}
	depth := 0
	for s.at < len(s.data) {
		switch s.data[s.at] {
		case '"':
			s.raw()
			if s.err != nil {
				return
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		s.at++
		if depth == 0 {
			return
		}
	}
	s.fail("the text ends within a value")
}

// scalar passes over a number, true, false or null.
func (s *scanner) scalar() {
	start := s.at
	for s.at < len(s.data) {
		c := s.data[s.at]
		if c <= ' ' || c == ',' || c == '}' || c == ']' || c == '"' || c == ':' {
			break
		}
		s.at++
	}
	if s.at == start {
		s.fail("no value where one is due")
	}
}

// end says that nothing but white space may follow.
func (s *scanner) end() {
	if s.err == nil && s.next() != 0 || s.err == nil && s.at < len(s.data) {
		s.fail("text after the end of the value")
	}
}
