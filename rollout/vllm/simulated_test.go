package vllm

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// simulated is a server that samples at a pace: every trace takes time, all
// requests run at once, and the counters rise meanwhile. It can be killed, hung
// or slowed down while it works.
type simulated struct {
	server *httptest.Server
	length func(seed int64) int // tokens of a trace

	mu      sync.Mutex
	pace    float64 // tokens a second of each trace; 0 is hung
	at      time.Time
	done    float64 // tokens sampled until at
	running map[*simulatedJob]bool
	arrived func(job string)
	changed chan struct{} // closed and replaced when pace changes
}

type simulatedJob struct {
	left []float64 // tokens that each trace still takes
}

func newSimulated(pace float64, length func(seed int64) int) *simulated {
	s := &simulated{pace: pace, length: length, at: time.Now(), running: map[*simulatedJob]bool{},
		arrived: func(string) {}, changed: make(chan struct{})}
	s.server = httptest.NewServer(s)
	return s
}

// advance brings the books up to now. It must be called under the lock.
func (s *simulated) advance() {
	now := time.Now()
	step := s.pace * now.Sub(s.at).Seconds()
	s.at = now
	for job := range s.running {
		for i, left := range job.left {
			s.done += min(left, step)
			job.left[i] = max(0, left-step)
		}
	}
}

func (s *simulated) setPace(pace float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	s.pace = pace
	close(s.changed)
	s.changed = make(chan struct{})
}

// kill ends the server as if its process were gone.
func (s *simulated) kill() {
	s.server.Listener.Close()
	s.server.CloseClientConnections()
}

func (s *simulated) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	switch r.URL.Path {
	case "/v1/models":
		fmt.Fprint(w, `{"data":[{"id":"policy"}]}`)
	case "/is_paused":
		fmt.Fprint(w, `{"is_paused":false}`)
	case "/collective_rpc":
		fmt.Fprint(w, `{"results":[null]}`)
	case "/metrics":
		s.mu.Lock()
		s.advance()
		running := 0
		for job := range s.running {
			for _, left := range job.left {
				if left > 0 {
					running++
				}
			}
		}
		fmt.Fprintf(w, "vllm:generation_tokens_total %f\nvllm:num_requests_running %d\nprocess_start_time_seconds 1\n", s.done, running)
		s.mu.Unlock()
	case "/v1/chat/completions":
		s.chat(w, r, body)
	}
}

func (s *simulated) chat(w http.ResponseWriter, r *http.Request, body []byte) {
	var request struct {
		N     int
		Seed  int64
		Max   int    `json:"max_completion_tokens"`
		Asked string `json:"request_id"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		refuse(w, 400, "{}")
		return
	}
	job := &simulatedJob{}
	var lengths []int
	for i := range request.N {
		length := min(request.Max, s.length(request.Seed+int64(i)))
		lengths = append(lengths, length)
		job.left = append(job.left, float64(length))
	}
	s.mu.Lock()
	s.advance()
	s.running[job] = true
	arrived := s.arrived
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.advance()
		delete(s.running, job)
	}()
	arrived(request.Asked)
	if s.finish(r, job) {
		fmt.Fprint(w, simulatedAnswer(lengths))
	}
}

// finish waits until job is sampled; false if the client left.
func (s *simulated) finish(r *http.Request, job *simulatedJob) bool {
	for {
		s.mu.Lock()
		s.advance()
		longest := 0.0
		for _, left := range job.left {
			longest = max(longest, left)
		}
		pace, changed := s.pace, s.changed
		s.mu.Unlock()
		if longest <= 1e-6 {
			return true
		}
		var timer <-chan time.Time
		stop := func() bool { return true }
		if pace > 0 {
			t := time.NewTimer(time.Duration(longest / pace * float64(time.Second)))
			timer, stop = t.C, t.Stop
		}
		select {
		case <-timer:
		case <-changed:
		case <-r.Context().Done():
			stop()
			return false
		}
		stop()
	}
}

func simulatedAnswer(lengths []int) string {
	var choices []string
	for i, n := range lengths {
		ids := strings.TrimSuffix(strings.Repeat("7,", n), ",")
		entries := strings.TrimSuffix(strings.Repeat(`{"logprob":-0.5},`, n), ",")
		choices = append(choices, fmt.Sprintf(`{"index":%d,"message":{"content":"x"},"finish_reason":"stop","token_ids":[%s],"logprobs":{"content":[%s]}}`, i, ids, entries))
	}
	return `{"prompt_token_ids":[1],"choices":[` + strings.Join(choices, ",") + `]}`
}

// simulatedFleet is a fleet with default limits over n simulated servers.
func simulatedFleet(b testing.TB, n int, pace float64, concurrency int, length func(seed int64) int) (*Fleet, []*simulated) {
	b.Helper()
	o := Options{Concurrency: concurrency}
	var servers []*simulated
	for range n {
		s := newSimulated(pace, length)
		servers = append(servers, s)
		o.Servers = append(o.Servers, s.server.URL)
	}
	fleet, err := NewFleet(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := fleet.Close(); err != nil {
			b.Error(err)
		}
		for _, s := range servers {
			s.setPace(1e9)
			s.server.Close()
		}
	})
	return fleet, servers
}
