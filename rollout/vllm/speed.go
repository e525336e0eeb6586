package vllm

import (
	"fmt"
	"slices"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// speed is how fast a server samples, learnt from its counters between looks.
type speed struct {
	total float64 // tokens per second, smoothed
	each  float64 // tokens per second of one running trace, smoothed
	looks int     // that it was learnt from

	tokens  float64 // counter at the last look
	running float64 // traces at the last look
	at      time.Time
}

const (
	// speedWeight is the weight of the newest look: after three looks at a tenth
	// of the pace an average stands at a fifth of it.
	speedWeight = 0.5
	// leastLooks is the number of looks from which a speed is believed.
	leastLooks = 4
)

// look books the counters seen at now. A span in which the server sampled
// nothing, because it was idle or read prompts, says nothing about its speed.
func (v *speed) look(m metrics, now time.Time) {
	if !m.known {
		return
	}
	span, tokens, traces := now.Sub(v.at).Seconds(), m.tokens-v.tokens, (m.running+v.running)/2
	if !v.at.IsZero() && span > 0 && tokens > 0 && v.running > 0 && m.running > 0 {
		total := tokens / span
		if v.looks++; v.looks == 1 {
			v.total, v.each = total, total/traces
		}
		v.total += speedWeight * (total - v.total)
		v.each += speedWeight * (total/traces - v.each)
	}
	v.tokens, v.running, v.at = m.tokens, m.running, now
}

// judgeSpeed compares s with the others. It is slow only if it samples less
// than the limit both in all and for each trace: a full server gives each trace
// less, and an empty one less in all, and neither is slow. The jobs of a server
// that turns slow go to the others: below a quarter of their pace, to begin anew
// there is done before the rest would be done here, unless three quarters are
// behind it. It must be called under the lock.
func (f *Fleet) judgeSpeed(s *server) {
	var totals, eaches []float64
	for _, other := range f.servers {
		if other != s && other.serving() && other.speed.looks >= leastLooks {
			totals, eaches = append(totals, other.speed.total), append(eaches, other.speed.each)
		}
	}
	if len(totals) == 0 || s.speed.looks < leastLooks || f.options.SlowRatio < 0 {
		return
	}
	// Of the pace of the others, 1 is their median.
	s.pace = max(s.speed.total/median(totals), s.speed.each/median(eaches))
	switch {
	case s.state == StateHealthy && s.pace < f.options.SlowRatio:
		f.setState(s, StateSlow, fmt.Sprintf("it samples %.0f tokens/s, %.0f %% of the others' pace", s.speed.total, 100*s.pace))
		f.unload(s, len(s.flights))
	case s.state == StateSlow && s.pace >= 2*f.options.SlowRatio:
		f.setState(s, StateHealthy, "")
	case s.state == StateSlow && len(f.line) == 0:
		f.unload(s, f.idle(s)) // others ran out of work
	}
}

// unload ends at most most flights of s, none that were moved before, if a
// healthy server can take them or will. It must be called under the lock.
func (f *Fleet) unload(s *server, most int) {
	if s.live == nil || !f.another(s, *s.live) {
		return
	}
	for trip := range s.flights {
		if most > 0 && !trip.moved && trip.cancel != nil {
			trip.moved = true // so that the next look does not count it again
			trip.cancel(errSlow)
			most--
		}
	}
}

// idle is how many jobs the healthy servers beside s could take at once. It must
// be called under the lock.
func (f *Fleet) idle(s *server) int {
	free := 0
	for _, other := range f.servers {
		if other != s && other.state == StateHealthy && s.live != nil && other.serves(*s.live) {
			free += max(0, f.options.Concurrency-len(other.flights))
		}
	}
	return free
}

// another says whether a healthy server other than s serves policy. It must be
// called under the lock.
func (f *Fleet) another(s *server, policy rollout.Policy) bool {
	for _, other := range f.servers {
		if other != s && other.state == StateHealthy && other.serves(policy) {
			return true
		}
	}
	return false
}

// room is how many jobs s may have: a slow server takes its share only, because
// a job waits for a fast one more briefly than it would run here.
func (f *Fleet) room(s *server) int {
	if s.state != StateSlow {
		return f.options.Concurrency
	}
	return max(1, int(float64(f.options.Concurrency)*min(1, s.pace)))
}

// median is the lower median of values, which must not be empty.
func median(values []float64) float64 {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[(len(sorted)-1)/2]
}
