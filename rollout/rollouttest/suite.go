package rollouttest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/rollout"
)

// Patience is the longest that one test of the suite waits for anything that
// must happen. It is generous: no test passes by reaching it.
const Patience = 2 * time.Minute

// Setup is what one test of the suite runs against: a fresh fleet to which
// nothing was offered yet. Whoever makes it registers its end with t.Cleanup.
type Setup struct {
	Fleet rollout.Fleet
	// Offer makes weights available as policy version and returns their offer.
	// Versions are offered in rising order from 0.
	Offer func(t *testing.T, version int) rollout.Offer
	// Question returns the i-th of at least 8 different questions. Default:
	// [Question].
	Question func(i int) rollout.Question
	// MaxTokens is the response length the suite asks for. Default 48.
	MaxTokens int
	// Tolerance is 0 when the engine gives the same bits for the same job.
	// Above 0, log-probabilities of equal tokens may differ by as much (nats),
	// and traces are compared up to their first unequal token only.
	Tolerance float64
	// AllowLeaks leaves goroutines unchecked; for engines in C++ or Python whose
	// client library keeps its own.
	AllowLeaks bool
}

// Test is one entry of the suite.
type Test struct {
	Name string
	Run  func(t *testing.T, s Setup)
}

// Tests is the table of the conformance suite.
func Tests() []Test {
	return []Test{
		{"group answers its job", testAnswers},
		{"traces lie in seed order", testSeedOrder},
		{"same job same group", testSameJob},
		{"top-k entropies on request", testTopK},
		{"jobs at once keep their answers", testConcurrency},
		{"job waits until its policy is live", testWaitsForPolicy},
		{"adopt makes the new policy live", testAdopt},
		{"job of an old policy is dropped as stale", testStale},
		{"refused request is dropped with its reason", testRefused},
		{"deadline is a drop", testDeadline},
		{"cancelled sample returns the context's error", testCancelled},
		{"commit is idempotent", testCommit},
	}
}

// Run runs every test of the suite on a fleet of its own and checks that no
// goroutine outlives it.
func Run(t *testing.T, setup func(t *testing.T) Setup) {
	for _, test := range Tests() {
		t.Run(test.Name, func(t *testing.T) {
			allowed := new(bool)
			before := goleak.IgnoreCurrent()
			t.Cleanup(func() { // runs after the clean-ups that setup registers
				if !*allowed {
					goleak.VerifyNone(t, before)
				}
			})
			s := setup(t)
			*allowed = s.AllowLeaks
			if s.Question == nil {
				s.Question = Question
			}
			if s.MaxTokens == 0 {
				s.MaxTokens = 48
			}
			test.Run(t, s)
		})
	}
}

// Question is a text-only true-or-false question; different i, different
// questions.
func Question(i int) rollout.Question {
	text := fmt.Sprintf("Item %d: the cup-to-disc ratio is raised. True or false? A) True B) False", i)
	return rollout.Question{
		ID: fmt.Sprintf("question-%03d", i), Kind: rollout.TrueFalse, Level: rollout.Basic, Split: "train",
		Text: text, Gold: "A",
		Messages: []rollout.Message{{Role: "user", Parts: []rollout.Part{{Text: text}}}},
	}
}

// job makes the i-th job of a test under policy, with a seed of its own.
func (s Setup) job(i int, policy rollout.Policy) rollout.Job {
	q := s.Question(i)
	return rollout.Job{
		ID: rollout.JobID(fmt.Sprintf("suite-%d-%d", policy.Version, i)), Stage: "rl", Index: i,
		Question: q, Policy: policy, Purpose: rollout.Train,
		Sampling: rollout.Sampling{
			Traces: 4, Temperature: 1, TopP: 1, MaxTokens: s.MaxTokens,
			Seed: rollout.BaseSeed(7, "rl", q.ID, i, 0),
		},
	}
}

// patient bounds a test.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// adopt brings the offer of version live.
func (s Setup) adopt(t *testing.T, version int) rollout.Policy {
	t.Helper()
	offer := s.Offer(t, version)
	adopted, err := s.Fleet.Adopt(patient(t), offer)
	if err != nil {
		t.Fatalf("adopting version %d: %v", version, err)
	}
	if adopted.Policy != offer.Policy || len(adopted.Servers) == 0 {
		t.Fatalf("adopted %s on %d servers, want %s on at least one", adopted.Policy, len(adopted.Servers), offer.Policy)
	}
	for _, server := range adopted.Servers {
		if server.Err != "" || server.Server == "" {
			t.Fatalf("server %q did not adopt: %s", server.Server, server.Err)
		}
	}
	return offer.Policy
}

// sample returns a group that passed Group.Check.
func (s Setup) sample(t *testing.T, job rollout.Job) rollout.Group {
	t.Helper()
	group, err := s.Fleet.Sample(patient(t), job)
	if err != nil {
		t.Fatalf("sampling %s: %v", job.ID, err)
	}
	if err := group.Check(job); err != nil {
		t.Fatal(err)
	}
	return group
}
