package vllm

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/rollout"
)

// BenchmarkFailover lets one of four loaded servers die, hang or become slow,
// with the fleet's default limits, and reports after how many seconds that was
// noticed and the last of its jobs had arrived elsewhere. Every job must be
// answered, once. Run it with -benchtime 1x.
func BenchmarkFailover(b *testing.B) {
	for name, fault := range map[string]func(*simulated){
		"killed": (*simulated).kill,
		"hung":   func(s *simulated) { s.setPace(0) },
		"slow":   func(s *simulated) { s.setPace(10) },
	} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				noticed, elsewhere := failover(b, fault)
				b.ReportMetric(noticed.Seconds(), "s-noticed")
				b.ReportMetric(elsewhere.Seconds(), "s-elsewhere")
			}
		})
	}
}

// where books which server every job was last seen on.
type where struct {
	sync.Mutex
	server  map[string]int
	changed time.Time // when a job last came to a server other than the first
}

func failover(b *testing.B, fault func(*simulated)) (noticed, elsewhere time.Duration) {
	const servers, jobs, warm = 4, 320, 6 * time.Second
	fleet, sims := simulatedFleet(b, servers, 200, 16, func(seed int64) int { return 200 + int(seed>>10)%800 })
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	policy := offerOf(0).Policy
	if _, err := fleet.Adopt(ctx, offerOf(0)); err != nil {
		b.Fatal(err)
	}
	w := &where{server: map[string]int{}}
	for i, s := range sims {
		s.mu.Lock()
		s.arrived = func(id string) {
			if id == "" {
				return // a canary
			}
			id = id[:strings.LastIndexByte(id, '-')]
			w.Lock()
			defer w.Unlock()
			w.server[id] = i
			if i > 0 {
				w.changed = time.Now()
			}
		}
		s.mu.Unlock()
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	answered := map[rollout.JobID]int{}
	for i := range jobs {
		wait.Go(func() {
			job := jobOf(fmt.Sprintf("j%d", i), policy)
			job.Sampling.MaxTokens, job.Sampling.Seed = 1000, int64(i)<<10
			group, err := fleet.Sample(ctx, job)
			if err != nil {
				b.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			answered[group.Job]++
		})
	}
	<-time.After(warm) // the fleet learns the servers' pace
	struck := time.Now()
	w.Lock()
	stranded := map[string]bool{}
	fleet.mu.Lock()
	for id, server := range w.server {
		mu.Lock()
		if server == 0 && answered[rollout.JobID(id)] == 0 {
			stranded[id] = true
		}
		mu.Unlock()
	}
	fleet.mu.Unlock()
	w.Unlock()
	fault(sims[0])
	err := fleet.await(ctx, func(time.Time) verdict {
		return verdict{done: fleet.servers[0].state != StateHealthy || fleet.servers[0].failed > 0}
	})
	if err != nil {
		b.Fatal(err)
	}
	noticed = time.Since(struck)
	last := struck
	for moved := false; !moved; {
		<-time.After(5 * time.Millisecond)
		w.Lock()
		moved = true
		for id := range stranded {
			moved = moved && w.server[id] != 0
		}
		last = w.changed
		w.Unlock()
		if time.Since(struck) > time.Minute {
			b.Fatalf("jobs are still on the first server after %s: %+v", time.Since(struck), fleet.Servers())
		}
	}
	elsewhere = last.Sub(struck)
	wait.Wait()
	for i := range jobs {
		if n := answered[rollout.JobID(fmt.Sprintf("j%d", i))]; n != 1 {
			b.Errorf("job %d was answered %d times", i, n)
		}
	}
	if len(stranded) == 0 {
		b.Error("the first server had no jobs")
	}
	return noticed, elsewhere
}
