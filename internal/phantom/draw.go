package phantom

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// stream is the random stream of item index of a split: a function of the
// three and of nothing else.
func stream(seed int64, split string, index int) *rand.Rand {
	sum := sha256.Sum256(fmt.Appendf(nil, "phantom-1|%d|%d:%s|%d", seed, len(split), split, index))
	return rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum[:8]), binary.LittleEndian.Uint64(sum[8:16])))
}

// drawScene draws a scene with the given number of affected quadrants.
func drawScene(r *rand.Rand, affected int, camera Camera) Scene {
	s := Scene{
		DiscRight: r.IntN(2) == 1,
		Cupped:    r.IntN(4) == 0,
		Contrast:  0.6 + 0.4*r.Float64(),
		Camera:    camera,
		Seed:      r.Uint64(),
	}
	order := r.Perm(4)
	// Two kinds prevail in one eye: with four independent draws hardly any
	// scene would have a lesion in most quadrants.
	first, second := lesions[r.IntN(4)], lesions[r.IntN(4)]
	for i := range 4 {
		if i >= affected {
			continue
		}
		l := first
		switch u := r.Float64(); {
		case u < 0.3:
			l = second
		case u < 0.5:
			l = lesions[r.IntN(4)]
		}
		s.Quadrants[order[i]] = drawFinding(r, l)
	}
	return s
}

// drawFinding draws number and size of the marks of l.
func drawFinding(r *rand.Rand, l Lesion) Finding {
	base := map[Lesion]int{Microaneurysms: 3, Haemorrhages: 1, Exudates: 4, Drusen: 2}[l]
	return Finding{Lesion: l, Marks: base + r.IntN(3), Size: 0.85 + 0.4*r.Float64()}
}

// drawUntil draws scenes until ok accepts one. ok must hold for a fair share of
// scenes; after many failures the last scene is returned with false.
func drawUntil(r *rand.Rand, camera Camera, affected func() int, ok func(Scene) bool) (Scene, bool) {
	var s Scene
	for range 4096 {
		if s = drawScene(r, affected(), camera); ok(s) {
			return s, true
		}
	}
	return s, false
}
