package remote_test

import (
	"sync"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

// BenchmarkStep sends a step of 256 jobs through bus and worker, with groups of
// 4 traces of 512 tokens, and commits it: what the bus adds to a step.
func BenchmarkStep(b *testing.B) {
	r := newRing(b)
	answer := func(rollout.Question, int64, int, rollout.Sampling) rollout.Trace {
		return rollout.Trace{Tokens: make([]int32, 512), Logprobs: make([]float32, 512), Text: "text"}
	}
	r.workWith(options("w", rollouttest.NewScripted(rollouttest.Script{Servers: []string{"w"}, Answer: answer}), 32))
	adopt(b, r.fleet, 1, 0)
	const jobs = 256
	for b.Loop() {
		var wg sync.WaitGroup
		ids := make([]rollout.JobID, jobs)
		for i := range jobs {
			j := job(i, 1, 0)
			j.Sampling.MaxTokens = 512
			ids[i] = j.ID
			wg.Go(func() {
				if _, err := r.fleet.Sample(patient(b), j); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		if err := r.fleet.Commit(patient(b), ids); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(jobs*b.N)/b.Elapsed().Seconds(), "groups/s")
}
