package vision

import "math/bits"

// DifferenceHash names what an image looks like: 64 bits, each saying whether a
// cell of a 9 x 8 reduction in grey is darker than the one to its right. Copies
// that were resized, compressed again or slightly changed in colour differ in a
// few bits; unrelated photographs in about 32.
func (m *Image) DifferenceHash() uint64 {
	const rows, columns = 8, 8
	small := m.Resize(rows, columns+1)
	grey := func(y, x int) int {
		p := small.Pix[3*(y*small.Width+x):]
		return 299*int(p[0]) + 587*int(p[1]) + 114*int(p[2])
	}
	var hash uint64
	for y := range rows {
		for x := range columns {
			hash <<= 1
			if grey(y, x) < grey(y, x+1) {
				hash |= 1
			}
		}
	}
	return hash
}

// HashDistance is the number of bits in which two hashes differ.
func HashDistance(a, b uint64) int { return bits.OnesCount64(a ^ b) }
