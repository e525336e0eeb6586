package coordinator

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

func TestRingRunsToItsEnd(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	k := mustKit(t, t.TempDir(), 1, nil)
	r := k.finish(t)
	if r.Step != 6 || r.Digest == "" || r.Digest == trainertest.InitialDigest() {
		t.Errorf("result %+v", r)
	}
	if want := (Counts{Admitted: 24, Trained: 24}); r.Counts != want {
		t.Errorf("counts %+v, want %+v", r.Counts, want)
	}
	var versions []int
	for _, p := range k.fleet.Policies() {
		versions = append(versions, p.Version)
	}
	if want := []int{0, 1, 2, 3, 4, 5}; !slices.Equal(versions, want) {
		t.Errorf("policies went live: %v, want %v", versions, want)
	}
	for n := 1; n <= 6; n++ {
		for i := range 4 {
			job := rollout.JobID(fmt.Sprintf("rl-%d-%d", n, i))
			if s, c := k.fleet.Sampled(job), k.fleet.Committed(job); s != 1 || c != 1 {
				t.Errorf("job %s: sampled %d times, committed %d times, want once each", job, s, c)
			}
		}
	}
	saved := eventsOf[telemetry.CheckpointSaved](k.events)
	if len(saved) != 3 || saved[2].Step != 6 {
		t.Errorf("checkpoints %+v, want steps 2, 4, 6", saved)
	}
}

// TestPolicyOfEachStep checks v(n) = max(0, n-1-k) by the policies that jobs
// carried.
func TestPolicyOfEachStep(t *testing.T) {
	for staleness := range 4 {
		t.Run(fmt.Sprint("staleness ", staleness), func(t *testing.T) {
			var watch policyWatch
			k := mustKit(t, t.TempDir(), 1, func(k *kit, _ *trainertest.Script) {
				k.options.RL.MaxStaleness = staleness
				watch = policyWatch{Fleet: k.fleet, versions: make(chan [2]int, 1000)}
				k.options.Parts.Fleet = watch
			})
			k.finish(t)
			close(watch.versions)
			jobs := 0
			for v := range watch.versions {
				jobs++
				if want := max(0, v[0]-1-staleness); v[1] != want {
					t.Errorf("a job of step %d was sampled by version %d, want %d", v[0], v[1], want)
				}
			}
			if jobs != 24 {
				t.Errorf("%d jobs, want 24", jobs)
			}
			line, err := readLine(k.dir + "/metrics/step-0006.json")
			if err != nil {
				t.Fatal(err)
			}
			if got, want := line["rollout/staleness_mean"], float64(min(staleness, 5)); got != want {
				t.Errorf("staleness of the last step %v, want %v", got, want)
			}
		})
	}
}

type policyWatch struct {
	rollout.Fleet
	versions chan [2]int // step of the stage, version
}

func (w policyWatch) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	w.versions <- [2]int{job.Step + 1, job.Policy.Version}
	return w.Fleet.Sample(ctx, job)
}

// TestSamplingRunsAhead shows that with staleness 1 the rollouts of step 2 end
// while step 1 is still being trained, and that the ring goes no further.
func TestSamplingRunsAhead(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	held, release := make(chan struct{}), make(chan struct{})
	sampled := make(chan int, 100)
	k := mustKit(t, t.TempDir(), 1, func(k *kit, s *trainertest.Script) {
		k.options.RL.MaxStaleness = 1
		s.OnStep = func(ctx context.Context, step int) error {
			if step == 1 {
				close(held)
				select {
				case <-release:
				case <-ctx.Done():
				}
			}
			return nil
		}
		k.events.hook = func(e telemetry.Event) {
			if p, ok := e.(telemetry.RolloutProgress); ok && p.Done == p.All {
				sampled <- p.Step
			}
		}
	})
	done := make(chan error, 1)
	go func() { _, err := k.run(patient(t), t.Context()); done <- err }()
	<-held
	for _, want := range []int{1, 2} {
		if got := <-sampled; got != want {
			t.Errorf("batch %d was sampled, want %d", got, want)
		}
	}
	if n := k.fleet.Sampled("rl-3-0"); n != 0 {
		t.Errorf("a job of step 3 was sampled while step 1 was not trained")
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestTimingLeavesNoTrace runs the same ring with the answers held back in
// different orders and at different concurrency: the bits are the same.
func TestTimingLeavesNoTrace(t *testing.T) {
	for staleness := range 3 {
		t.Run(fmt.Sprint("staleness ", staleness), func(t *testing.T) {
			run := func(concurrency, turn int) (Result, *dirStore) {
				k := mustKit(t, t.TempDir(), uint64(turn+1), func(k *kit, _ *trainertest.Script) {
					k.options.RL.MaxStaleness = staleness
					k.options.RL.Concurrency = concurrency
					k.options.RL.DropZeroVariance = true
					k.options.Parts.Fleet = &reversed{Fleet: k.fleet, turn: turn}
				})
				return k.finish(t), k.store
			}
			want, wantStore := run(1, 0)
			for turn := 1; turn < 4; turn++ {
				got, gotStore := run(4, turn)
				sameRuns(t, want, got, wantStore, gotStore)
			}
		})
	}
}

// reversed changes the order in which a batch is answered.
type reversed struct {
	rollout.Fleet
	turn int
}

func (f *reversed) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	// Every job yields as often as its index and the turn say: enough to change
	// the order of answers, without any clock.
	for range (job.Index*7 + f.turn*13) % 50 * f.turn {
		runtime.Gosched()
	}
	return f.Fleet.Sample(ctx, job)
}
