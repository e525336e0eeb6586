package vllm

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
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

// load is a fleet at work: where every job was last seen, and who answered.
type load struct {
	fleet   *Fleet
	servers []*simulated
	wait    sync.WaitGroup

	mu       sync.Mutex
	server   map[string]int // of the job's last request
	moved    time.Time      // when a job last came to a server other than the first
	answered map[string]int
}

// newLoad gives jobs to four servers until all are answered.
func newLoad(ctx context.Context, b *testing.B, jobs int) *load {
	l := &load{server: map[string]int{}, answered: map[string]int{}}
	l.fleet, l.servers = simulatedFleet(b, 4, 200, 16, func(seed int64) int { return 200 + int(seed>>10)%800 })
	if _, err := l.fleet.Adopt(ctx, offerOf(0)); err != nil {
		b.Fatal(err)
	}
	for i, s := range l.servers {
		s.mu.Lock()
		s.arrived = func(id string) { l.arrived(i, id) }
		s.mu.Unlock()
	}
	for i := range jobs {
		l.wait.Go(func() {
			job := jobOf(fmt.Sprintf("j%d", i), offerOf(0).Policy)
			job.Sampling.MaxTokens, job.Sampling.Seed = 1000, int64(i)<<10
			if _, err := l.fleet.Sample(ctx, job); err != nil {
				b.Error(err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.answered[string(job.ID)]++
		})
	}
	return l
}

func (l *load) arrived(server int, id string) {
	if id == "" {
		return // a canary
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server[id[:strings.LastIndexByte(id, '-')]] = server
	if server > 0 {
		l.moved = time.Now()
	}
}

// stranded lists the jobs on the first server.
func (l *load) stranded() (jobs []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, server := range l.server {
		if server == 0 && l.answered[id] == 0 {
			jobs = append(jobs, id)
		}
	}
	return jobs
}

// away says whether all jobs came to another server or were answered before
// they could, and when the last came.
func (l *load) away(jobs []string) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range jobs {
		if l.server[id] == 0 && l.answered[id] == 0 {
			return time.Time{}, false
		}
	}
	return l.moved, true
}

func failover(b *testing.B, fault func(*simulated)) (noticed, elsewhere time.Duration) {
	const jobs, warm = 320, 6 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	l := newLoad(ctx, b, jobs)
	<-time.After(warm) // the fleet learns the servers' pace
	struck := time.Now()
	stranded := l.stranded()
	if len(stranded) == 0 {
		b.Fatal("the first server has no jobs")
	}
	fault(l.servers[0])
	err := l.fleet.await(ctx, func(time.Time) verdict {
		return verdict{done: l.fleet.servers[0].state != StateHealthy || l.fleet.servers[0].failed > 0}
	})
	if err != nil {
		b.Fatal(err)
	}
	noticed = time.Since(struck)
	for {
		if last, ok := l.away(stranded); ok {
			elsewhere = last.Sub(struck)
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			b.Fatalf("jobs are still on the first server: %+v", l.fleet.Servers())
		}
	}
	l.wait.Wait()
	for i := range jobs {
		if n := l.answered[fmt.Sprintf("j%d", i)]; n != 1 {
			b.Errorf("job %d was answered %d times", i, n)
		}
	}
	return noticed, elsewhere
}
