package vllm

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// serveOn serves handler on address until the test ends.
func serveOn(t *testing.T, address string, handler http.Handler) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)
}

// TestDeadServer: jobs of a server that dies are answered by the other; when it
// comes back it gets the current weights before it serves.
func TestDeadServer(t *testing.T) {
	dying, other := newFake(t), newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Quorum = 1 }, dying, other)
	policy := adoptVersion(t, fleet, 0)
	arrived := make(chan struct{})
	dying.setHook(onChat(func(_ http.ResponseWriter, r *http.Request) { close(arrived); <-r.Context().Done() }))
	type result struct {
		group rollout.Group
		err   error
	}
	done := make(chan result, 1)
	go func() {
		group, err := fleet.Sample(bounded(t), jobOf("j1", policy))
		done <- result{group, err}
	}()
	<-arrived
	address := dying.server.Listener.Addr().String()
	dying.server.Listener.Close()
	dying.setHook(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		conn, _, err := w.(http.Hijacker).Hijack() // end the probes' connections; the job's hangs
		if err == nil {
			conn.Close()
		}
		return true
	})
	if r := <-done; r.err != nil || r.group.Server != other.server.URL {
		t.Fatalf("answered by %s: %v", r.group.Server, r.err)
	}
	if s := fleet.Servers()[0]; s.State != StateDead {
		t.Errorf("%+v, want dead", s)
	}
	next := adoptVersion(t, fleet, 1) // one server is quorum here
	reborn := newFake(t)
	reborn.start = 2
	serveOn(t, address, reborn)
	eventually(t, fleet, "the reborn server serves", func() bool { return fleet.servers[0].serves(next) })
	if reborn.path != "/weights/1" {
		t.Errorf("weights %q", reborn.path)
	}
}

// TestHungServer: health says well, nothing moves: the job is taken elsewhere.
// When the server moves again, it serves again.
func TestHungServer(t *testing.T) {
	hung, other := newFake(t), newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.HangAfter = 50 * time.Millisecond }, hung, other)
	policy := adoptVersion(t, fleet, 0)
	stuck := make(chan struct{})
	hung.setHook(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path != "/v1/chat/completions" {
			return false
		}
		select {
		case <-stuck:
			return false
		case <-r.Context().Done():
			return true
		}
	})
	group, err := fleet.Sample(bounded(t), jobOf("j1", policy))
	if err != nil || group.Server != other.server.URL {
		t.Fatalf("answered by %s: %v", group.Server, err)
	}
	if s := fleet.Servers()[0]; s.State != StateHung || s.Failed != 1 {
		t.Errorf("%+v, want hung", s)
	}
	adopted, err := fleet.Adopt(bounded(t), offerOf(1))
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) || !strings.Contains(adopted.Servers[0].Err, "hung") {
		t.Errorf("a hung server adopted: %+v, %v", adopted, err)
	}
	close(stuck)
	eventually(t, fleet, "the server caught up", func() bool { return fleet.servers[0].serves(offerOf(1).Policy) })
}

// TestPausedByOthers: a paused server gets no jobs, and its own are not lost.
func TestPausedByOthers(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	policy := adoptVersion(t, fleet, 0)
	f.setPaused(true)
	eventually(t, fleet, "paused", func() bool { return fleet.servers[0].state == StatePaused })
	done := make(chan error, 1)
	go func() { _, err := fleet.Sample(bounded(t), jobOf("j1", policy)); done <- err }()
	eventually(t, fleet, "the job waits", func() bool { return fleet.queued[policy] == 1 })
	f.setPaused(false)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPatience: no server at all is an answer too, after a while.
func TestPatience(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Patience = 30 * time.Millisecond }, f)
	policy := adoptVersion(t, fleet, 0)
	f.setPaused(true)
	eventually(t, fleet, "paused", func() bool { return fleet.servers[0].state == StatePaused })
	_, err := fleet.Sample(bounded(t), jobOf("j1", policy))
	wantDrop(t, err, rollout.ReasonUnavailable, "somebody paused it")
}

// TestRestartedServer: another process under the same address has other
// weights, whatever it says.
func TestRestartedServer(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, nil, f)
	policy := adoptVersion(t, fleet, 0)
	f.mu.Lock()
	f.start, f.path = 2, "/weights/of-its-own"
	f.mu.Unlock()
	eventually(t, fleet, "loaded again", func() bool {
		return f.called("/collective_rpc") == 2 && fleet.servers[0].serves(policy)
	})
}

// bare is a fleet without monitors, for judging by hand.
func bare(n int) *Fleet {
	f := &Fleet{options: Options{HangAfter: 10 * time.Second, DeadAfter: 3, Quarantine: time.Second, SlowRatio: 0.25}.withDefaults(),
		adopting: make(chan struct{}, 1), changed: make(chan struct{}), queued: map[rollout.Policy]int{}}
	offer := offerOf(0)
	f.offer = &offer
	for i := range n {
		s := newServer(fmt.Sprint("http://s", i), f.options)
		s.state, s.live, s.looked, s.start, s.progress = StateHealthy, &offer.Policy, true, 1, 100
		s.progressed = time.Unix(1000, 0)
		f.servers = append(f.servers, s)
	}
	return f
}

// TestJudge walks one server through what may be seen of it.
func TestJudge(t *testing.T) {
	now := time.Unix(1000, 0)
	well := func(progress, start float64) observation {
		return observation{metrics: metrics{progress: progress, known: true, start: start}}
	}
	type step struct {
		seconds int
		o       observation
		state   State
		todo    order
	}
	silent, gone := observation{err: errors.New("no answer")}, observation{err: errors.New("refused"), refused: true}
	for name, c := range map[string]struct {
		prepare func(*Fleet, *server)
		steps   []step
	}{
		"silence is patient":        {nil, []step{{0, silent, StateHealthy, nothing}, {1, silent, StateHealthy, nothing}, {2, silent, StateDead, nothing}}},
		"one answer forgives":       {nil, []step{{0, silent, StateHealthy, nothing}, {1, silent, StateHealthy, nothing}, {2, well(100, 1), StateHealthy, nothing}, {3, silent, StateHealthy, nothing}}},
		"a closed door is not":      {nil, []step{{0, gone, StateDead, nothing}}},
		"the same process is back":  {nil, []step{{0, gone, StateDead, nothing}, {1, well(100, 1), StateHealthy, nothing}}},
		"another process":           {nil, []step{{0, well(100, 2), StateAdopting, adopt}}},
		"counters fell":             {func(_ *Fleet, s *server) { s.start = 0 }, []step{{0, well(99, 0), StateAdopting, adopt}}},
		"unknown process after":     {func(_ *Fleet, s *server) { s.start = 0 }, []step{{0, gone, StateDead, nothing}, {1, well(100, 0), StateAdopting, adopt}}},
		"idle is not hung":          {nil, []step{{0, well(100, 1), StateHealthy, nothing}, {60, well(100, 1), StateHealthy, nothing}}},
		"busy and moving":           {busy, []step{{0, well(101, 1), StateHealthy, nothing}, {9, well(101, 1), StateHealthy, nothing}, {11, well(102, 1), StateHealthy, nothing}}},
		"busy and stuck":            {busy, []step{{0, well(101, 1), StateHealthy, nothing}, {10, well(101, 1), StateHung, nothing}, {11, well(102, 1), StateHealthy, nothing}}},
		"no counters, no verdict":   {busy, []step{{0, observation{}, StateHealthy, nothing}, {100, observation{}, StateHealthy, nothing}}},
		"hung without jobs":         {func(_ *Fleet, s *server) { s.state = StateHung }, []step{{0, well(100, 1), StateHung, prod}}},
		"paused and resumed":        {nil, []step{{0, observation{metrics: metrics{progress: 100, known: true, start: 1}, paused: true}, StatePaused, nothing}, {1, well(100, 1), StateHealthy, nothing}}},
		"our own pause":             {func(_ *Fleet, s *server) { s.changes = 2 }, []step{{0, observation{metrics: metrics{progress: 100, known: true, start: 1}, paused: true, changes: 1}, StateHealthy, nothing}}},
		"broken stays broken":       {func(_ *Fleet, s *server) { s.state, s.broken, s.live = StateDead, true, nil }, []step{{0, well(200, 1), StateDead, nothing}, {1, well(1, 2), StateAdopting, adopt}}},
		"adopting hears no silence": {func(_ *Fleet, s *server) { s.state = StateAdopting }, []step{{0, silent, StateAdopting, nothing}, {1, silent, StateAdopting, nothing}, {2, silent, StateAdopting, nothing}, {3, gone, StateDead, nothing}}},
		"stale waits for its turn":  {func(f *Fleet, s *server) { s.state, s.live = StateStale, nil; f.adopting <- struct{}{} }, []step{{0, well(100, 1), StateStale, nothing}}},
		"stale in quarantine":       {func(_ *Fleet, s *server) { s.state, s.live, s.until = StateStale, nil, now.Add(time.Second) }, []step{{0, well(100, 1), StateStale, nothing}, {1, well(100, 1), StateAdopting, adopt}}},
		"stale without an offer":    {func(f *Fleet, s *server) { s.state, s.live, f.offer = StateStale, nil, nil }, []step{{0, well(100, 1), StateStale, nothing}}},
		"missed an offer":           {func(f *Fleet, _ *server) { o := offerOf(1); f.offer = &o }, []step{{0, well(100, 1), StateAdopting, adopt}}},
		"missed an offer, has jobs": {func(f *Fleet, s *server) { o := offerOf(1); f.offer = &o; busy(f, s) }, []step{{0, well(101, 1), StateHealthy, nothing}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := bare(1)
			s := f.servers[0]
			s.progressed = now
			if c.prepare != nil {
				c.prepare(f, s)
			}
			for i, step := range c.steps {
				todo := f.judge(s, step.o, now.Add(time.Duration(step.seconds)*time.Second))
				if s.state != step.state || todo != step.todo {
					t.Fatalf("step %d: %s (%s), order %d; want %s, order %d", i, s.state, s.why, todo, step.state, step.todo)
				}
			}
		})
	}
}

func busy(_ *Fleet, s *server) {
	s.flights[&flight{cancel: func(error) {}, progress: func() {}}] = true
}

// TestPatienceFollowsPace: a server that has shown its pace is given up early,
// but only where another can take its jobs.
func TestPatienceFollowsPace(t *testing.T) {
	f := bare(2)
	s := f.servers[0]
	busy(f, s)
	now := s.progressed
	move := func(after time.Duration, progress float64) {
		now = now.Add(after)
		f.judge(s, observation{metrics: metrics{progress: progress, known: true, start: 1}}, now)
	}
	for i := range leastPaces {
		if got := f.patienceWith(s); got != f.options.HangAfter {
			t.Fatalf("after %d signs of progress: %s", i, got)
		}
		move(time.Second, float64(200+i))
	}
	if got := f.patienceWith(s); got != 4*time.Second {
		t.Errorf("pace of 1 s: patience %s, want 4 s", got)
	}
	f.servers[1].state = StateDead
	if got := f.patienceWith(s); got != f.options.HangAfter {
		t.Errorf("nobody else: patience %s", got)
	}
	f.servers[1].state = StateHealthy
	if move(3999*time.Millisecond, 207); s.state != StateHealthy {
		t.Errorf("just within patience: %s", s.state)
	}
	if move(time.Millisecond, 207); s.state != StateHung {
		t.Errorf("out of patience: %s", s.state)
	}
	s.gap = time.Millisecond
	if got := f.patienceWith(s); got != 5*f.options.ProbeEvery {
		t.Errorf("pace of 1 ms: patience %s, want five probes", got)
	}
	s.gap = time.Hour
	if got := f.patienceWith(s); got != f.options.HangAfter {
		t.Errorf("pace of 1 h: patience %s, want the limit", got)
	}
}

func TestStrikesDouble(t *testing.T) {
	s := newServer("http://x", Options{}.withDefaults())
	now := time.Unix(0, 0)
	var waits []time.Duration
	for range 8 {
		s.strike(now, time.Second)
		waits = append(waits, s.until.Sub(now))
	}
	if got := fmt.Sprint(waits); got != "[1s 2s 4s 8s 16s 32s 32s 32s]" {
		t.Errorf("quarantines %s", got)
	}
	s.succeed()
	if s.strikes != 0 || !s.until.IsZero() {
		t.Errorf("after success: %d strikes, until %v", s.strikes, s.until)
	}
}
