package serve

import (
	"math"
	"strconv"
	"unicode/utf8"
)

// The log-probability lists make up nearly all bytes of a response, so they are
// written by hand: an order of magnitude faster than by reflection.

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD.
func appendString(b []byte, s []byte) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRune(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}

// appendBytes appends a list of byte values.
func appendBytes(b []byte, s []byte) []byte {
	b = append(b, '[')
	for i, c := range s {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(c), 10)
	}
	return append(b, ']')
}

// noProbability is what vLLM writes for the log of zero.
const noProbability = -9999.0

// appendLogProb appends the shortest number that reads back as x.
func appendLogProb(b []byte, x float32) []byte {
	if math.IsInf(float64(x), -1) || x < noProbability {
		x = noProbability
	}
	return appendFloat(b, x)
}

func appendFloat(b []byte, x float32) []byte {
	start := len(b)
	b = strconv.AppendFloat(b, float64(x), 'g', -1, 32)
	for _, c := range b[start:] {
		if c == '.' || c == 'e' {
			return b
		}
	}
	return append(b, '.', '0')
}

// appendIDs appends a list of token ids.
func appendIDs(b []byte, ids []int32) []byte {
	b = append(b, '[')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(id), 10)
	}
	return append(b, ']')
}
