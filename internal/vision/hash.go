package vision

import "math/bits"

// Hash names what an image looks like, in 256 bits.
type Hash [4]uint64

// DifferenceHash says of each cell of a 17 x 16 reduction in grey whether it is
// darker than the one to its right. Copies that were resized or compressed again
// differ in a few bits of 256. Fundus photographs are all alike at 64 bits,
// which is why there are more.
func (m *Image) DifferenceHash() Hash {
	const rows, columns = 16, 16
	small := m.Resize(rows, columns+1)
	grey := func(y, x int) int {
		p := small.Pix[3*(y*small.Width+x):]
		return 299*int(p[0]) + 587*int(p[1]) + 114*int(p[2])
	}
	var hash Hash
	for y := range rows {
		for x := range columns {
			if grey(y, x) < grey(y, x+1) {
				bit := y*columns + x
				hash[bit/64] |= 1 << (bit % 64)
			}
		}
	}
	return hash
}

// Distance is the number of bits in which two hashes differ.
func (h Hash) Distance(other Hash) int {
	d := 0
	for i := range h {
		d += bits.OnesCount64(h[i] ^ other[i])
	}
	return d
}
