package vision

// inverse is the inverse cosine transform of one block, dequantised: the
// algorithm of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) with 13 binary
// digits for its constants and 2 between the passes, rounded as libjpeg's
// accurate integer transform. It writes 8 x 8 samples to dst, rows stride bytes
// apart.
func inverse(b *[64]int16, quant *[64]int32, dst []byte, stride int) {
	var work [64]int32
	for x := range 8 {
		var column [8]int32
		for y := range 8 {
			column[y] = int32(b[8*y+x]) * quant[8*y+x]
		}
		transform(&column, 11)
		for y := range 8 {
			work[8*y+x] = column[y]
		}
	}
	for y := range 8 {
		row := (*[8]int32)(work[8*y:])
		transform(row, 18)
		out := dst[y*stride:][:8]
		for x := range 8 {
			out[x] = byte(min(max(row[x]+128, 0), 255))
		}
	}
}

// transform is the transform in one dimension; the result is divided by
// 2^shift and rounded.
func transform(v *[8]int32, shift uint) {
	// sqrt(2) times sums of cosines of k*pi/16, times 2^13.
	const (
		c0298, c0390, c0541, c0765 = 2446, 3196, 4433, 6270
		c0899, c1175, c1501, c1847 = 7373, 9633, 12299, 15137
		c1961, c2053, c2562, c3072 = 16069, 16819, 20995, 25172
	)
	// Even coefficients.
	z := (v[2] + v[6]) * c0541
	e2, e3 := z-v[6]*c1847, z+v[2]*c0765
	e0, e1 := (v[0]+v[4])<<13, (v[0]-v[4])<<13
	a0, a1, a2, a3 := e0+e3, e1+e2, e1-e2, e0-e3
	// Odd coefficients.
	z1, z2, z3, z4 := -(v[7]+v[1])*c0899, -(v[5]+v[3])*c2562, -(v[7]+v[3])*c1961, -(v[5]+v[1])*c0390
	z5 := (v[7] + v[3] + v[5] + v[1]) * c1175
	z3, z4 = z3+z5, z4+z5
	o0, o1 := v[7]*c0298+z1+z3, v[5]*c2053+z2+z4
	o2, o3 := v[3]*c3072+z2+z3, v[1]*c1501+z1+z4
	half := int32(1) << (shift - 1)
	v[0], v[7] = (a0+o3+half)>>shift, (a0-o3+half)>>shift
	v[1], v[6] = (a1+o2+half)>>shift, (a1-o2+half)>>shift
	v[2], v[5] = (a2+o1+half)>>shift, (a2-o1+half)>>shift
	v[3], v[4] = (a3+o0+half)>>shift, (a3-o0+half)>>shift
}
