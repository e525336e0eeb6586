package qwenvl

import "math/bits"

// uniform is the random number of draw n of a seed: 53 bits in [0, 1), from
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy
// as 1, 2, 3", 2011) with the seed as key and n as counter. It has no state, so
// a trace's draws depend on its seed and its positions alone.
func uniform(seed uint64, n uint64) float64 {
	return float64(philox(seed, n)>>11) / (1 << 53)
}

// splitSeed derives the seed of request n of an engine.
func splitSeed(seed, n uint64) uint64 { return philox(^seed, n) }

func philox(seed, n uint64) uint64 {
	counter := [4]uint32{uint32(n), uint32(n >> 32), 0, 0}
	key := [2]uint32{uint32(seed), uint32(seed >> 32)}
	for range 10 {
		hi0, lo0 := bits.Mul32(0xD2511F53, counter[0])
		hi1, lo1 := bits.Mul32(0xCD9E8D57, counter[2])
		counter = [4]uint32{hi1 ^ counter[1] ^ key[0], lo1, hi0 ^ counter[3] ^ key[1], lo0}
		key[0] += 0x9E3779B9
		key[1] += 0xBB67AE85
	}
	return uint64(counter[0])<<32 | uint64(counter[1])
}
