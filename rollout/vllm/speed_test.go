package vllm

import (
	"errors"
	"math"
	"testing"
	"time"
)

func TestSpeedIsLearntFromLooks(t *testing.T) {
	var v speed
	now := time.Unix(0, 0)
	look := func(tokens, running float64) {
		now = now.Add(500 * time.Millisecond)
		v.look(metrics{known: true, tokens: tokens, running: running}, now)
	}
	look(0, 8)
	look(400, 8) // 800 tokens/s, 100 a trace
	if v.looks != 1 || v.total != 800 || v.each != 100 {
		t.Errorf("%+v, want 800 and 100", v)
	}
	look(400, 8)                          // reads prompts
	look(400, 0)                          // idle
	look(900, 8)                          // was idle at the last look
	v.look(metrics{}, now.Add(time.Hour)) // shows nothing
	if v.looks != 1 || v.total != 800 {
		t.Errorf("%+v, want as before", v)
	}
	for i := range 3 {
		look(940+40*float64(i), 8) // a tenth of the pace
	}
	if math.Abs(v.each-100*(0.1+0.9/8)) > 1e-9 {
		t.Errorf("after three slow looks %v a trace, want 21.25", v.each)
	}
}

// TestSlow: a server is slow if both its total and its pace for each trace are
// far below the others'. It is used last, its jobs go where there is room, each
// once, and at twice the limit it is well again.
func TestSlow(t *testing.T) {
	for name, c := range map[string]struct {
		total, each float64
		want        State
	}{
		"as the others":      {100, 10, StateHealthy},
		"slow":               {20, 2, StateSlow},
		"full: slow of each": {100, 1, StateHealthy},
		"empty: little":      {5, 10, StateHealthy},
		"just above":         {25, 2.5, StateHealthy},
	} {
		f := bare(3)
		for _, s := range f.servers {
			s.speed = speed{total: 100, each: 10, looks: leastLooks}
		}
		s := f.servers[2]
		s.speed.total, s.speed.each = c.total, c.each
		if f.judgeSpeed(s); s.state != c.want {
			t.Errorf("%s: %s (%s), want %s", name, s.state, s.why, c.want)
		}
		if f.servers[0].state != StateHealthy {
			t.Errorf("%s: the first is %s", name, f.servers[0].state)
		}
	}
}

func TestSlowServerIsUnloadedOnce(t *testing.T) {
	f := bare(2)
	f.options.Concurrency = 10
	other, s := f.servers[0], f.servers[1]
	crawl := speed{total: 20, each: 2, looks: leastLooks}
	other.speed, s.speed = speed{total: 100, each: 10, looks: leastLooks}, crawl
	ended := map[*flight]error{}
	add := func(moved bool) *flight {
		trip := &flight{moved: moved}
		trip.cancel = func(reason error) { ended[trip] = reason }
		s.flights[trip] = true
		return trip
	}
	before := add(true)
	for range 5 {
		add(false)
	}
	other.state = StatePaused
	if f.unload(s, 9); len(ended) != 0 {
		t.Errorf("%d flights ended though nobody can take them", len(ended))
	}
	other.state = StateHealthy
	f.judgeSpeed(s)
	if s.state != StateSlow || len(ended) != 5 || ended[before] != nil {
		t.Errorf("%s: %d flights ended, want 5; the one moved before: %v", s.state, len(ended), ended[before])
	}
	for _, reason := range ended {
		if !errors.Is(reason, errSlow) {
			t.Errorf("ended by %v", reason)
		}
	}
	late := add(false) // taken while the others were full
	f.line = []*ticket{{policy: offerOf(0).Policy}}
	if f.judgeSpeed(s); ended[late] != nil {
		t.Error("a job was moved though others wait in line")
	}
	f.line = nil
	for range f.options.Concurrency {
		busy(f, other)
	}
	if f.judgeSpeed(s); ended[late] != nil {
		t.Error("a job was moved though the other is full")
	}
	other.flights = map[*flight]bool{}
	if f.judgeSpeed(s); !errors.Is(ended[late], errSlow) || ended[before] != nil {
		t.Errorf("with the other idle, the late job: %v, the one moved before: %v", ended[late], ended[before])
	}
	s.speed.total, s.speed.each = 49, 4.9
	if f.judgeSpeed(s); s.state != StateSlow {
		t.Error("healthy again below twice the limit")
	}
	s.speed.total = 50
	if f.judgeSpeed(s); s.state != StateHealthy {
		t.Errorf("%s at half the pace", s.state)
	}
	s.speed, f.options.SlowRatio = crawl, -1
	if f.judgeSpeed(s); s.state != StateHealthy {
		t.Error("slow although that is switched off")
	}
}

// TestSlowServerTakesItsShare: it is used last, as far as its pace goes, and
// never for a job that was taken off it while another serves.
func TestSlowServerTakesItsShare(t *testing.T) {
	f := bare(2)
	f.options.Concurrency = 10
	other, s := f.servers[0], f.servers[1]
	s.state, s.pace = StateSlow, 0.2
	policy, now := offerOf(0).Policy, time.Unix(1000, 0)
	other.load = 1 << 40
	if best, _ := f.pick(policy, nil, now); best != other {
		t.Error("the slow server was used before the loaded one")
	}
	for range f.options.Concurrency {
		busy(f, other)
	}
	if best, _ := f.pick(policy, map[*server]bool{s: true}, now); best != nil {
		t.Error("a job went back to the slow server that it was taken off")
	}
	for taken := range 2 {
		if best, _ := f.pick(policy, nil, now); best != s {
			t.Errorf("the slow server was not used for job %d of its share of 2", taken)
		}
		busy(f, s)
	}
	if best, _ := f.pick(policy, nil, now); best != nil {
		t.Error("the slow server was used beyond its share")
	}
	other.state, s.flights = StateDead, map[*flight]bool{}
	if best, _ := f.pick(policy, map[*server]bool{s: true}, now); best != s {
		t.Error("the slow server was not used though it is the only one")
	}
}
