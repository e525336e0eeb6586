package vllm

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// TestProgressIsTheServers: what one look at a server says of its jobs, and of
// those that wait for a place on it.
func TestProgressIsTheServers(t *testing.T) {
	now := time.Unix(1000, 0)
	seen := func(progress float64, paused bool) observation {
		return observation{metrics: metrics{progress: progress, known: true, start: 1}, paused: paused}
	}
	for name, c := range map[string]struct {
		o             observation
		idle          bool // the server has no job
		sampled, next int  // marks of a job on the server, and of one in line
	}{
		"it generated":                   {o: seen(101, false), sampled: 1, next: 1},
		"it stands still":                {o: seen(100, false)},
		"it is paused":                   {o: seen(101, true)},
		"it does not answer":             {o: observation{err: http.ErrHandlerTimeout}},
		"it shows no counters":           {o: observation{}, sampled: 1, next: 1},
		"it works for others, not us":    {o: seen(101, false), idle: true},
		"another process, counters anew": {o: observation{metrics: metrics{progress: 1, known: true, start: 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := bare(1)
			s := f.servers[0]
			sampled, next, other := 0, 0, 0
			if !c.idle {
				s.flights[&flight{cancel: func(error) {}, progress: func() { sampled++ }}] = true
			}
			f.enter(*s.live, true, func() { next++ })
			f.enter(offerOf(1).Policy, true, func() { other++ })
			f.judge(s, c.o, now)
			if sampled != c.sampled || next != c.next || other != 0 {
				t.Errorf("marks of the job %d, of the next %d, of one of another policy %d; want %d, %d, 0", sampled, next, other, c.sampled, c.next)
			}
		})
	}
}

// TestProgressOfALongRequest: a job whose server generates is marked while its
// only request is unanswered, and not once the server stands still.
func TestProgressOfALongRequest(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	job := jobOf("j1", adoptVersion(t, fleet, 0))
	var marks atomic.Int64
	marked := make(chan struct{}, 1)
	ctx := rollout.WithProgress(bounded(t), func() {
		marks.Add(1)
		select {
		case marked <- struct{}{}:
		default:
		}
	})
	arrived, finish, looks := make(chan struct{}), make(chan struct{}), make(chan struct{})
	f.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch r.URL.Path {
		case "/v1/chat/completions":
			close(arrived)
			<-finish
		case "/metrics":
			select {
			case looks <- struct{}{}:
			default:
			}
		}
		return false
	})
	done := make(chan error, 1)
	go func() { _, err := fleet.Sample(ctx, job); done <- err }()
	<-arrived
	<-marked // it was given to a server
	for range 3 {
		f.mu.Lock()
		f.tokens++
		f.mu.Unlock()
		<-marked
	}
	<-looks // the last rise may have been seen after this look
	<-looks
	before := marks.Load()
	for range 5 {
		<-looks
	}
	if after := marks.Load(); after != before {
		t.Errorf("%d marks while nothing was generated", after-before)
	}
	close(finish)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
