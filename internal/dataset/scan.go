package dataset

import (
	"bytes"
	"fmt"
	"io"
)

// span is the place of one record in a file.
type span struct {
	Offset int64
	Length int64
}

// scanner finds the elements of a JSON array in a stream without parsing them:
// it follows strings and brackets only. What lies between the brackets of an
// element is judged when the record is read.
type scanner struct {
	spans   []span
	state   scanState
	depth   int
	escaped bool
	start   int64
}

type scanState uint8

const (
	beforeArray scanState = iota
	betweenRecords
	inRecord // inside brackets, outside a string
	inString // inside a string inside brackets
	inBare   // a number, literal or string that is an element by itself
	inBareString
	afterArray
)

// scanArray returns the spans of the elements of the array in r. Errors wrap
// ErrFormat and name record and byte.
func scanArray(r io.Reader) ([]span, error) {
	s := &scanner{}
	buf := make([]byte, 1<<20)
	var offset int64
	for {
		n, err := r.Read(buf)
		if e := s.feed(buf[:n], offset); e != nil {
			return nil, e
		}
		offset += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read at byte %d: %w", offset, err)
		}
	}
	switch s.state {
	case afterArray:
		return s.spans, nil
	case beforeArray:
		return nil, fmt.Errorf("%w: no JSON array found", ErrFormat)
	case betweenRecords:
		return nil, fmt.Errorf("%w: the array is not closed after record %d", ErrFormat, len(s.spans)-1)
	}
	return nil, fmt.Errorf("%w: record %d, from byte %d, is not closed before the file ends", ErrFormat, len(s.spans), s.start)
}

// feed advances over data, which starts at offset of the file.
func (s *scanner) feed(data []byte, offset int64) error {
	for i := 0; i < len(data); {
		if s.state == inString || s.state == inBareString {
			i += s.str(data[i:])
			continue
		}
		c, at := data[i], offset+int64(i)
		i++
		if err := s.step(c, at); err != nil {
			return err
		}
	}
	return nil
}

// str consumes string content and returns how many bytes it took.
func (s *scanner) str(data []byte) int {
	if s.escaped {
		s.escaped = false
		return 1
	}
	quote := bytes.IndexByte(data, '"')
	limit := quote
	if quote < 0 {
		limit = len(data)
	}
	if slash := bytes.IndexByte(data[:limit], '\\'); slash >= 0 {
		s.escaped = true
		return slash + 1
	}
	if quote < 0 {
		return len(data)
	}
	if s.state == inString {
		s.state = inRecord
	} else {
		s.state = inBare
	}
	return quote + 1
}

// step handles one byte outside strings.
func (s *scanner) step(c byte, at int64) error {
	switch s.state {
	case beforeArray:
		return s.stepBefore(c, at)
	case betweenRecords:
		s.stepBetween(c, at)
	case inRecord:
		switch c {
		case '"':
			s.state = inString
		case '{', '[':
			s.depth++
		case '}', ']':
			if s.depth--; s.depth == 0 {
				s.close(at + 1)
			}
		}
	case inBare:
		switch c {
		case '"':
			s.state = inBareString
		case ',':
			s.close(at)
		case ']':
			s.close(at)
			s.state = afterArray
		}
	case afterArray:
		if !space(c) {
			return fmt.Errorf("%w: byte %d follows the end of the array: %q", ErrFormat, at, c)
		}
	}
	return nil
}

func (s *scanner) stepBefore(c byte, at int64) error {
	switch {
	case c == '[':
		s.state = betweenRecords
	case space(c), at < 3 && (c == 0xEF || c == 0xBB || c == 0xBF): // byte order mark
	default:
		return fmt.Errorf("%w: byte %d is %q, want the [ of a JSON array", ErrFormat, at, c)
	}
	return nil
}

func (s *scanner) stepBetween(c byte, at int64) {
	switch {
	case c == ']':
		s.state = afterArray
	case c == ',' || space(c):
	case c == '{' || c == '[':
		s.state, s.depth, s.start = inRecord, 1, at
	case c == '"':
		s.state, s.start = inBareString, at
	default:
		s.state, s.start = inBare, at
	}
}

func (s *scanner) close(end int64) {
	s.spans = append(s.spans, span{s.start, end - s.start})
	s.state = betweenRecords
}

func space(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// scanLines returns the spans of the non-blank lines of r.
func scanLines(r io.Reader) ([]span, error) {
	var spans []span
	buf := make([]byte, 1<<20)
	var offset, start int64
	blank := true
	end := func(at int64) {
		if !blank {
			spans = append(spans, span{start, at - start})
		}
		start, blank = at+1, true
	}
	for {
		n, err := r.Read(buf)
		for i, c := range buf[:n] {
			if c == '\n' {
				end(offset + int64(i))
			} else if !space(c) {
				blank = false
			}
		}
		offset += int64(n)
		if err == io.EOF {
			end(offset)
			return spans, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read at byte %d: %w", offset, err)
		}
	}
}
