package vllm

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// longTailed is the length of a trace by its seed: lognormal with mean 611
// tokens and a heavy tail, at most 2,048.
func longTailed(seed int64) int {
	const mean, sigma = 611, 0.8
	rng := rand.New(rand.NewPCG(uint64(seed), 11))
	length := math.Exp(math.Log(mean) - sigma*sigma/2 + sigma*rng.NormFloat64())
	return max(1, min(2048, int(length)))
}

// listBound is how long jobs take on n places if each starts, in the order
// given, the moment a place is free: the best that can be done without knowing
// lengths beforehand.
func listBound(jobs []float64, n int) float64 {
	free := make([]float64, n)
	end := 0.0
	for _, job := range jobs {
		first := 0
		for i := range free {
			if free[i] < free[first] {
				first = i
			}
		}
		free[first] += job
		end = max(end, free[first])
	}
	return end
}

// BenchmarkFleetUse compares what a fleet of four simulated servers achieves
// with what it could: a synchronous step (all jobs given at once, the last one
// awaited) with its own bounds, that of jobs started in order without any delay,
// and that of work divided by places, which needs to know lengths beforehand;
// and a stream of jobs that never dries up with all places busy all the time.
// Run it with -benchtime 1x.
func BenchmarkFleetUse(b *testing.B) {
	const servers, places, traces, pace = 4, 16, 5, 1000.0
	work := func(seed int64) float64 { // seconds that the job with this seed takes
		longest := 0
		for i := range int64(traces) {
			longest = max(longest, longTailed(seed+i))
		}
		return float64(longest) / pace
	}
	for name, jobs := range map[string]int{"synchronous": 512, "stream": 1024} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				fleet, _ := simulatedFleet(b, servers, pace, places, longTailed)
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
				if _, err := fleet.Adopt(ctx, offerOf(0)); err != nil {
					b.Fatal(err)
				}
				var wait sync.WaitGroup
				var mu sync.Mutex
				var finished []float64 // work of jobs in the order in which they ended
				var ends []time.Duration
				var all []float64
				total := 0.0
				started := time.Now()
				for i := range jobs {
					job := jobOf(fmt.Sprintf("j%d", i), offerOf(0).Policy)
					job.Sampling.Traces, job.Sampling.MaxTokens, job.Sampling.Seed = traces, 2048, int64(i)<<10
					took := work(job.Sampling.Seed)
					all, total = append(all, took), total+took
					wait.Go(func() {
						if _, err := fleet.Sample(ctx, job); err != nil {
							b.Error(err)
						}
						mu.Lock()
						defer mu.Unlock()
						finished, ends = append(finished, took), append(ends, time.Since(started))
					})
				}
				wait.Wait()
				cancel()
				if name == "synchronous" {
					took := ends[len(ends)-1].Seconds()
					b.ReportMetric(100*listBound(all, servers*places)/took, "%-of-list-bound")
					b.ReportMetric(100*total/(servers*places)/took, "%-of-work-bound")
					continue
				}
				// Until the last job was started, every place should be busy: count what
				// had ended when the places began to run dry.
				dry := len(ends) - servers*places
				done := 0.0
				for _, w := range finished[:dry] {
					done += w
				}
				// Jobs under way then are half done on average.
				for _, w := range finished[dry:] {
					done += w / 2
				}
				b.ReportMetric(100*done/(ends[dry-1].Seconds()*servers*places), "%-of-places")
			}
		})
	}
}
