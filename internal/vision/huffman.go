package vision

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// zigzag maps the order of coefficients in the file to row-major order.
var zigzag = [64]int{
	0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5,
	12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
	35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
	58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
}

// quick is the length of codes that one table look-up decodes.
const quick = 9

// huffman decodes one set of codes.
type huffman struct {
	table   [1 << quick]uint16 // symbol << 8 | length, 0 for longer codes
	last    [17]int32          // largest code of each length, -1 for none
	offset  [17]int32          // index into symbols of a code, less the code
	symbols []byte
}

// huffmanTables reads a DHT segment.
func (d *jpegFile) huffmanTables(b []byte) error {
	for len(b) > 0 {
		if len(b) < 17 || b[0]>>4 > 1 || b[0]&15 > 3 {
			return errors.New("broken Huffman table")
		}
		n := 0
		for _, count := range b[1:17] {
			n += int(count)
		}
		if n > 256 || len(b) < 17+n {
			return fmt.Errorf("code table of %d codes in %d bytes", n, len(b))
		}
		h := &d.dc[b[0]&15]
		if b[0]>>4 == 1 {
			h = &d.ac[b[0]&15]
		}
		if err := h.build(b[1:17], b[17:17+n]); err != nil {
			return err
		}
		b = b[17+n:]
	}
	return nil
}

// build numbers the codes: of each length in order, each as short as it can be.
func (h *huffman) build(counts, symbols []byte) error {
	*h = huffman{symbols: append([]byte(nil), symbols...)}
	code, index := int32(0), int32(0)
	for length := 1; length <= 16; length++ {
		h.last[length] = -1
		h.offset[length] = index - code
		for range counts[length-1] {
			if code >= 1<<length {
				return errors.New("a code table has more codes than fit")
			}
			if length <= quick {
				shift := quick - length
				for i := range 1 << shift {
					h.table[int(code)<<shift|i] = uint16(symbols[index])<<8 | uint16(length)
				}
			}
			h.last[length] = code
			code++
			index++
		}
		code <<= 1
	}
	return nil
}

// quantTables reads a DQT segment.
func (d *jpegFile) quantTables(b []byte) error {
	for len(b) > 0 {
		wide, id := int(b[0]>>4), b[0]&15
		size := 64 * (1 + wide)
		if wide > 1 || id > 3 || len(b) < 1+size {
			return errors.New("broken quantisation table")
		}
		for k := range 64 {
			if wide == 0 {
				d.quant[id][zigzag[k]] = int32(b[1+k])
			} else {
				d.quant[id][zigzag[k]] = int32(binary.BigEndian.Uint16(b[1+2*k:]))
			}
		}
		b = b[1+size:]
	}
	return nil
}

// errEntropy says that a scan ended before its last block.
var errEntropy = errors.New("unexpected end of the scan")

// bitReader reads the bits of a scan, in which 0xff is followed by 0.
type bitReader struct {
	data []byte
	pos  int
	acc  uint64
	n    uint // bits in acc
	fake uint // of these, how many lie behind the end
}

// need makes at least 32 bits available; behind the end they are 0.
func (r *bitReader) need() {
	for r.n <= 32 {
		var b byte
		switch {
		case r.pos < len(r.data) && r.data[r.pos] != 0xff:
			b = r.data[r.pos]
			r.pos++
		case r.pos+1 < len(r.data) && r.data[r.pos+1] == 0:
			b = 0xff
			r.pos += 2
		default:
			r.fake += 8
		}
		r.acc = r.acc<<8 | uint64(b)
		r.n += 8
	}
}

// drop uses up bits and fails if they lay behind the end.
func (r *bitReader) drop(n uint) error {
	r.n -= n
	if r.n < r.fake {
		return errEntropy
	}
	return nil
}

// take reads n <= 16 bits.
func (r *bitReader) take(n uint) (uint32, error) {
	r.need()
	v := uint32(r.acc>>(r.n-n)) & (1<<n - 1)
	return v, r.drop(n)
}

// signed reads a value of n bits, of which the lower half are negative.
func (r *bitReader) signed(n uint) (int32, error) {
	u, err := r.take(n)
	v := int32(u)
	if n > 0 && v < 1<<(n-1) {
		v -= 1<<n - 1
	}
	return v, err
}

// symbol reads one code.
func (r *bitReader) symbol(h *huffman) (byte, error) {
	if len(h.symbols) == 0 {
		return 0, errors.New("a code table is missing")
	}
	r.need()
	if e := h.table[r.acc>>(r.n-quick)&(1<<quick-1)]; e != 0 {
		return byte(e >> 8), r.drop(uint(e & 0xff))
	}
	for length := uint(quick + 1); length <= 16; length++ {
		code := int32(r.acc>>(r.n-length)) & (1<<length - 1)
		if code <= h.last[length] {
			return h.symbols[code+h.offset[length]], r.drop(length)
		}
	}
	return 0, errors.New("unknown Huffman code")
}

// restart skips to the marker that must come now.
func (r *bitReader) restart(number byte) error {
	r.acc, r.n, r.fake = 0, 0, 0
	for r.pos < len(r.data) && r.data[r.pos] != 0xff {
		r.pos++
	}
	for r.pos+1 < len(r.data) && r.data[r.pos+1] == 0xff {
		r.pos++
	}
	if r.pos+1 >= len(r.data) || r.data[r.pos+1] != rst0+number {
		return fmt.Errorf("no restart marker %d: %w", number, errEntropy)
	}
	r.pos += 2
	return nil
}
