package vllm

import (
	"context"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// State is what a fleet knows of one server. Only healthy and slow servers get
// jobs, and only jobs of the policy that is live on them.
type State string

// The states of a server.
const (
	StateStale    State = "stale"    // answers, but has not the current weights
	StateAdopting State = "adopting" // its weights are being changed
	StateHealthy  State = "healthy"  // serves
	StateSlow     State = "slow"     // serves far slower than the others; used last
	StatePaused   State = "paused"   // somebody else paused it; its jobs are frozen
	StateHung     State = "hung"     // has jobs and makes no progress, though it says it is well
	StateDead     State = "dead"     // does not answer, or broke while its weights were changed
)

// ServerStatus is a snapshot of one server.
type ServerStatus struct {
	Server string
	State  State
	Why    string         // of a state other than healthy
	Live   rollout.Policy // zero when nothing is
	Jobs   int            // in flight
	Rate   float64        // tokens per second, smoothed over the looks at which it had jobs; 0 when unknown
	Failed int            // jobs that it failed, ever
	Served int            // jobs that it answered, ever
}

// flight is a job on a server.
type flight struct {
	cancel context.CancelCauseFunc
	tokens int  // most tokens that it may take
	moved  bool // was taken off a slow server before, and stays now
	// progress marks that the job goes forward.
	progress func()
}

// server is one server as the fleet sees it. All fields but the client, the
// membership and the adapters are guarded by the fleet's lock.
type server struct {
	*client
	state   State
	why     string
	model   string          // served name; "" until asked
	live    *rollout.Policy // nil when unknown
	flights map[*flight]bool
	load    int // sum of tokens over flights

	strikes int       // failures in a row
	until   time.Time // quarantined until then
	served  int
	failed  int
	speed   speed
	pace    float64 // of the others' median, when last judged

	// Owned by whoever brings weights, one at a time.
	member   membership
	adapters []string // that we had it load and not unload, oldest first

	changes    int                     // times that a change of weights began or ended
	reborn     bool                    // was restarted since a change of weights last began
	abandon    context.CancelCauseFunc // ends the change of weights under way; nil without one
	broken     bool                    // must be restarted before it is believed again
	lost       bool                    // did not answer since it was last believed
	misses     int                     // failed probes in a row
	start      float64
	progress   float64
	progressed time.Time     // when progress last rose, or the server last became busy
	gap        time.Duration // longest recent time between two signs of progress while it had jobs
	paces      int           // signs of progress that gap was learnt from
	looked     bool          // start and progress were read at least once
}

func newServer(url string, options Options) *server {
	return &server{
		client: newClient(url, options), state: StateStale, why: "no weights were offered yet",
		flights: map[*flight]bool{},
	}
}

// serves says whether s takes jobs of policy in its present state.
func (s *server) serves(policy rollout.Policy) bool {
	return (s.state == StateHealthy || s.state == StateSlow) && s.live != nil && *s.live == policy
}

// status is the snapshot of s.
func (s *server) status() ServerStatus {
	status := ServerStatus{
		Server: s.id, State: s.state, Why: s.why, Jobs: len(s.flights), Rate: s.speed.total, Failed: s.failed, Served: s.served,
	}
	if s.live != nil {
		status.Live = *s.live
	}
	return status
}

// end cancels every flight of s, and a change of its weights, for a reason.
func (s *server) end(reason error) {
	if s.abandon != nil {
		s.abandon(reason)
	}
	for f := range s.flights {
		if f.cancel != nil { // nil while it takes off; it looks at the state then
			f.cancel(reason)
		}
	}
}

// strike quarantines s after a failure: for the base time, doubled with each
// failure in a row, 32 times at most.
func (s *server) strike(now time.Time, base time.Duration) {
	s.failed++
	s.until = now.Add(base << min(s.strikes, 5))
	s.strikes++
}

// succeed books an answered job.
func (s *server) succeed() {
	s.served++
	s.strikes, s.until = 0, time.Time{}
}
