package vllm

import (
	"fmt"
	"net/http"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

// TestLine: among those that want a policy the first is the oldest that was on
// a server before, else the oldest; whoever leaves is gone.
func TestLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := bare(1)
		var waiting []*ticket
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if len(waiting) > 0 && rapid.Bool().Draw(t, "leave") {
				at := rapid.IntRange(0, len(waiting)-1).Draw(t, "who")
				f.leave(waiting[at])
				f.leave(waiting[at]) // twice does no harm
				waiting = append(waiting[:at], waiting[at+1:]...)
			} else {
				waiting = append(waiting, f.enter(offerOf(rapid.IntRange(0, 1).Draw(t, "policy")).Policy, rapid.Bool().Draw(t, "fresh"), nil))
			}
			best := map[rollout.Policy]*ticket{}
			for _, w := range waiting {
				if b := best[w.policy]; b == nil || b.fresh && !w.fresh {
					best[w.policy] = w
				}
			}
			for _, w := range waiting {
				if f.first(w) != (best[w.policy] == w) {
					t.Fatalf("ticket %+v first: %v", *w, f.first(w))
				}
			}
			if len(f.line) != len(waiting) {
				t.Fatalf("%d in line, want %d", len(f.line), len(waiting))
			}
		}
	})
}

// TestFirstComeFirstServed: with one place, jobs run in the order in which they
// came, and one that was failed by a server runs before all that wait.
func TestFirstComeFirstServed(t *testing.T) {
	f := newFake(t)
	fleet := fleetOn(t, func(o *Options) { o.Concurrency = 1 }, f)
	policy := adoptVersion(t, fleet, 0)
	const jobs = 6
	arrived, release := make(chan string, jobs+2), make(chan int, jobs+2)
	f.setHook(func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		if r.URL.Path != "/v1/chat/completions" {
			return false
		}
		arrived <- requestID(body)
		if status := <-release; status != 200 {
			refuse(w, status, "no")
			return true
		}
		return false
	})
	done := make(chan error, jobs)
	for i := range jobs {
		go func() {
			_, err := fleet.Sample(bounded(t), jobOf(fmt.Sprint("j", i), policy))
			done <- err
		}()
		eventually(t, fleet, "the job is in line or on the server", func() bool {
			return len(fleet.line)+len(fleet.servers[0].flights) == i+1 && fleet.queued[policy] == i
		})
	}
	for i, want := range []string{"j0-0", "j0-1", "j1-0", "j2-0", "j3-0", "j4-0", "j5-0"} {
		if got := <-arrived; got != want {
			t.Errorf("request %d is %s, want %s", i, got, want)
		}
		if i == 0 {
			release <- 500
		} else {
			release <- 200
		}
	}
	for range jobs {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
