package phantom

import (
	"math/rand/v2"
	"strings"
)

// drawCaption draws a scene and describes it for stage 1: the scan, then one
// conclusion from it. A caption never concludes without scanning, so that
// stage 1 teaches no answer at a glance.
func drawCaption(r *rand.Rand, camera Camera) (Scene, string) {
	s := drawScene(r, r.IntN(5), camera)
	tails := captionTails(s)
	return s, s.Scan() + ": " + tails[r.IntN(len(tails))]
}

// captionTails lists the conclusions that hold for s; there is at least one.
func captionTails(s Scene) []string {
	tails := []string{evidence(s) + s.Diagnosis()}
	if n := s.Affected(); n > 0 {
		tails = append(tails, countPhrase(n))
	}
	if most, ok := s.Most(); ok {
		tails = append(tails, "mostly "+most.String())
	}
	if present := s.Present(); len(present) > 0 {
		words := make([]string, len(present))
		for i, l := range present {
			words[i] = l.String()
		}
		tails = append(tails, strings.Join(words, ", "))
	}
	return tails
}
