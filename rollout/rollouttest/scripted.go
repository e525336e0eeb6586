package rollouttest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// Script describes a [Scripted] fleet. The zero value is one server that holds
// no weights yet and never fails.
type Script struct {
	// Servers are the ids of the servers; jobs go to them in turn. Default: one,
	// "scripted-0".
	Servers []string
	// Quorum is how many servers must adopt an offer. Default 0: all.
	Quorum int
	// MaxTokens is the longest Sampling.MaxTokens that is not refused. Default
	// 65536.
	MaxTokens int
	// Answer is the policy. Default: [Answer].
	Answer func(q rollout.Question, seed int64, version int, s rollout.Sampling) rollout.Trace
	// Now is the clock of Started and Finished. Default time.Now.
	Now func() time.Time
	// Live is the policy that the servers hold at the start. Default: none, so
	// that jobs wait for the first Adopt.
	Live *rollout.Policy
}

// Fault is what goes wrong with one job. The fields act in the order in which
// they stand.
type Fault struct {
	// Hold keeps the job, after its policy is live, until the channel is closed.
	Hold <-chan struct{}
	// Reached, when not nil, is closed as soon as the job gets that far (before
	// Hold), so that a test can wait for it.
	Reached chan struct{}
	// Err is returned as it stands: the fleet itself broke, or a worker died.
	Err error
	// Drop fails the job with a *Dropped of this reason.
	Drop rollout.Reason
	// Mangle changes the group before it is returned: Garbage, Abort,
	// OtherPolicy, or a test's own.
	Mangle func(*rollout.Group)
	// Times is how many calls of Sample fail. Default 0: the first only; -1: all.
	Times int
}

// Scripted is a fleet in memory: deterministic answers, failures by script. It
// keeps the whole contract of rollout.Fleet: jobs wait until their policy is
// live, older ones are dropped as stale, and Adopt goes live only when no job of
// the old policy is left.
type Scripted struct {
	script Script

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at every change of the state below
	live      *rollout.Policy
	adopting  bool
	running   int // jobs being sampled under live
	next      int // server of the next job
	faults    map[rollout.JobID][]Fault
	failAdopt map[string]int
	dead      map[string]bool // did not adopt the live policy: serves nothing
	sampled   map[rollout.JobID]int
	committed map[rollout.JobID]int
	history   []rollout.Policy
}

var _ rollout.Fleet = (*Scripted)(nil)

// NewScripted makes the fleet that script describes.
func NewScripted(script Script) *Scripted {
	if len(script.Servers) == 0 {
		script.Servers = []string{"scripted-0"}
	}
	if script.Quorum < 1 {
		script.Quorum = len(script.Servers)
	}
	if script.MaxTokens == 0 {
		script.MaxTokens = 1 << 16
	}
	if script.Answer == nil {
		script.Answer = Answer
	}
	if script.Now == nil {
		script.Now = time.Now
	}
	return &Scripted{
		script: script, live: script.Live, changed: make(chan struct{}),
		faults: map[rollout.JobID][]Fault{}, failAdopt: map[string]int{}, dead: map[string]bool{},
		sampled: map[rollout.JobID]int{}, committed: map[rollout.JobID]int{},
	}
}

// Inject lets fault happen to the next Samples of job, after those injected
// before.
func (s *Scripted) Inject(job rollout.JobID, fault Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[job] = append(s.faults[job], fault)
}

// FailAdopt lets the next n Adopts fail on one server.
func (s *Scripted) FailAdopt(server string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failAdopt[server] = n
}

// Sampled counts how often job got as far as being sampled.
func (s *Scripted) Sampled(job rollout.JobID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sampled[job]
}

// Committed counts how often job was committed.
func (s *Scripted) Committed(job rollout.JobID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed[job]
}

// Policies lists the policies that went live, in order.
func (s *Scripted) Policies() []rollout.Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]rollout.Policy(nil), s.history...)
}

// Sample implements rollout.Fleet.
func (s *Scripted) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	outer := ctx
	if !job.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, job.Deadline)
		defer cancel()
	}
	group, err := s.sample(ctx, job)
	if errors.Is(err, context.DeadlineExceeded) && outer.Err() == nil {
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonDeadline, Err: err}
	}
	return group, err
}

func (s *Scripted) sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	if job.Sampling.Traces < 1 || job.Sampling.MaxTokens > s.script.MaxTokens {
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonRefused,
			Err: fmt.Errorf("%d traces of at most %d tokens, the longest is %d",
				job.Sampling.Traces, job.Sampling.MaxTokens, s.script.MaxTokens)}
	}
	server, fault, err := s.admit(ctx, job)
	if err != nil {
		return rollout.Group{}, err
	}
	defer s.update(func() { s.running-- })
	if fault.Reached != nil {
		close(fault.Reached)
	}
	if fault.Hold != nil {
		select {
		case <-fault.Hold:
		case <-ctx.Done():
			return rollout.Group{}, context.Cause(ctx)
		}
	}
	if fault.Err != nil {
		return rollout.Group{}, fault.Err
	}
	if fault.Drop != "" {
		return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: fault.Drop, Err: errors.New("scripted")}
	}
	group := rollout.Group{
		Job: job.ID, QuestionID: job.Question.ID, PromptTokens: prompt(job.Question),
		PolicySent: job.Policy, PolicyReceived: job.Policy,
		Server: server, Seed: job.Sampling.Seed, Started: s.script.Now(),
	}
	for i := range job.Sampling.Traces {
		group.Traces = append(group.Traces,
			s.script.Answer(job.Question, job.Sampling.Seed+int64(i), job.Policy.Version, job.Sampling))
	}
	group.Finished = s.script.Now()
	if fault.Mangle != nil {
		fault.Mangle(&group)
	}
	return group, nil
}

// admit waits until the job's policy is live and charges the job to it.
func (s *Scripted) admit(ctx context.Context, job rollout.Job) (server string, fault Fault, err error) {
	err = s.wait(ctx, func() (bool, error) {
		switch {
		case s.live == nil || s.live.Older(job.Policy):
			return false, nil
		case *s.live != job.Policy:
			return false, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonStale,
				Err: fmt.Errorf("policy %s is live, job wants %s", *s.live, job.Policy)}
		}
		s.running++
		s.sampled[job.ID]++
		server = s.pick()
		if queue := s.faults[job.ID]; len(queue) > 0 {
			fault = queue[0]
			if fault.Times >= 0 && s.charge(job.ID) {
				s.faults[job.ID] = queue[1:]
			}
		}
		return true, nil
	})
	return server, fault, err
}

// pick chooses the next living server.
func (s *Scripted) pick() string {
	for {
		server := s.script.Servers[s.next%len(s.script.Servers)]
		s.next++
		if !s.dead[server] {
			return server // there is one: a policy goes live on a quorum only
		}
	}
}

// charge uses up one of the times of the first fault of job and says whether
// it was the last.
func (s *Scripted) charge(job rollout.JobID) bool {
	first := &s.faults[job][0]
	first.Times--
	first.Reached = nil // closed once
	return first.Times <= 0
}

// Commit implements rollout.Fleet.
func (s *Scripted) Commit(ctx context.Context, jobs []rollout.JobID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range jobs {
		s.committed[id]++
	}
	return nil
}

// Adopt implements rollout.Fleet.
func (s *Scripted) Adopt(ctx context.Context, offer rollout.Offer) (rollout.Adopted, error) {
	start := s.script.Now()
	err := s.wait(ctx, func() (bool, error) {
		if s.live != nil && offer.Policy.Older(*s.live) {
			return false, fmt.Errorf("offer of policy %s is older than %s, which is live", offer.Policy, *s.live)
		}
		if s.adopting {
			return false, nil
		}
		s.adopting = true
		return true, nil
	})
	if err != nil {
		return rollout.Adopted{}, err
	}
	defer s.update(func() { s.adopting = false })
	if err := s.wait(ctx, func() (bool, error) { return s.running == 0, nil }); err != nil {
		return rollout.Adopted{}, err
	}
	adopted := rollout.Adopted{Policy: offer.Policy}
	ok := 0
	s.update(func() {
		for _, server := range s.script.Servers {
			result := rollout.ServerAdopted{Server: server}
			s.dead[server] = s.failAdopt[server] > 0
			if s.failAdopt[server] > 0 {
				s.failAdopt[server]--
				result.Err = "scripted: reload failed"
			} else {
				ok++
			}
			adopted.Servers = append(adopted.Servers, result)
		}
		if ok >= s.script.Quorum {
			policy := offer.Policy
			s.live = &policy
			s.history = append(s.history, policy)
		}
	})
	adopted.Seconds = s.script.Now().Sub(start).Seconds()
	if ok < s.script.Quorum {
		return adopted, &rollout.QuorumError{Adopted: adopted, Need: s.script.Quorum, Waited: s.script.Now().Sub(start)}
	}
	return adopted, nil
}

// wait calls ready, under the lock, at every change of state until it is true
// or fails, or ctx ends.
func (s *Scripted) wait(ctx context.Context, ready func() (bool, error)) error {
	for {
		s.mu.Lock()
		done, err := ready()
		changed := s.changed
		s.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// update changes the state and wakes everyone who waits for it.
func (s *Scripted) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Garbage cuts the log-probabilities of the first trace short.
func Garbage(g *rollout.Group) { g.Traces[0].Logprobs = g.Traces[0].Logprobs[:0] }

// Abort marks the last trace as given up by the server.
func Abort(g *rollout.Group) { g.Traces[len(g.Traces)-1].Finish = rollout.FinishAbort }

// OtherPolicy lets the group finish under the next policy.
func OtherPolicy(g *rollout.Group) { g.PolicyReceived.Version++ }
