package vllm

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/micro"
	"github.com/uadt-train/uadt-train/internal/serve"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

// nativeWeights writes a fresh micro checkpoint for each of n versions.
func nativeWeights(t *testing.T, n int) (dirs, digests []string) {
	t.Helper()
	for i := range n {
		dir := filepath.Join(t.TempDir(), fmt.Sprint("v", i))
		digest, err := micro.Init(dir, micro.Options{
			Seed: uint64(i + 1), Corpus: []string{"the cup to disc ratio is raised true or false"},
		})
		if err != nil {
			t.Fatal(err)
		}
		dirs, digests = append(dirs, dir), append(digests, digest)
	}
	return dirs, digests
}

// nativeServer serves dir with the native engine until the test ends.
func nativeServer(t *testing.T, dir string) string {
	t.Helper()
	server, err := serve.New(serve.Options{Dir: dir, MaxLogprobs: 32})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(server.Handler())
	t.Cleanup(func() {
		front.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return front.URL
}

// TestNativeConformance runs the suite on the native server, to the bit.
func TestNativeConformance(t *testing.T) {
	dirs, digests := nativeWeights(t, 2)
	for name, servers := range map[string]int{"one server": 1, "two servers": 2} {
		t.Run(name, func(t *testing.T) {
			rollouttest.Run(t, func(t *testing.T) rollouttest.Setup {
				o := Options{ProbeEvery: 20 * time.Millisecond}
				for range servers {
					o.Servers = append(o.Servers, nativeServer(t, dirs[1]))
				}
				fleet, err := NewFleet(o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := fleet.Close(); err != nil {
						t.Error(err)
					}
				})
				return rollouttest.Setup{Fleet: fleet, Offer: func(_ *testing.T, version int) rollout.Offer {
					return rollout.Offer{
						Policy:    rollout.Policy{Incarnation: 1, Version: version, Digest: digests[version%2]},
						Transport: rollout.ByDirectory, Path: dirs[version%2],
					}
				}}
			})
		})
	}
}

// TestNativeRefusesOtherBytes: a directory whose weights changed between publish
// and adopt is not sampled from, though it loads and answers.
func TestNativeRefusesOtherBytes(t *testing.T) {
	dirs, digests := nativeWeights(t, 2)
	fleet, err := NewFleet(Options{Servers: []string{nativeServer(t, dirs[0])}, ProbeEvery: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
	}()
	offer := func(version int) rollout.Offer {
		return rollout.Offer{
			Policy:    rollout.Policy{Incarnation: 1, Version: version, Digest: digests[version]},
			Transport: rollout.ByDirectory, Path: dirs[version],
		}
	}
	if _, err := fleet.Adopt(bounded(t), offer(0)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dirs[1], checkpoint.WeightsFile)
	weights, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	weights[len(weights)-2] ^= 1 // a bit of the last weight, finite still
	if err := os.WriteFile(path, weights, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = fleet.Adopt(bounded(t), offer(1))
	var quorum *rollout.QuorumError
	if !errors.As(err, &quorum) || !strings.Contains(err.Error(), "want "+digests[1]) {
		t.Errorf("got %v, want a refusal with the offered digest", err)
	}
	if s := fleet.Servers()[0]; s.State != StateDead || s.Live == offer(1).Policy || !strings.Contains(s.Why, "must be restarted") {
		t.Errorf("%+v, want dead until restarted", s)
	}
	_, err = fleet.Sample(bounded(t), jobOf("j", offer(0).Policy))
	wantDrop(t, err, rollout.ReasonStale, "")
}

// TestNativeRetryIsTheSame: a job that fails on one native server and is tried
// on the other gives the same bits as on one that never failed.
func TestNativeRetryIsTheSame(t *testing.T) {
	dirs, digests := nativeWeights(t, 1)
	policy := rollout.Policy{Incarnation: 1, Digest: digests[0]}
	offer := rollout.Offer{Policy: policy, Transport: rollout.ByDirectory, Path: dirs[0]}
	good := nativeServer(t, dirs[0])
	answers := make([]rollout.Group, 2)
	for i, fail := range []bool{false, true} {
		gate := newGate(t, nativeServer(t, dirs[0]))
		fleet, err := NewFleet(Options{Servers: []string{gate.URL, good}, Quarantine: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		_, err = fleet.Adopt(bounded(t), offer)
		if err == nil {
			gate.fail.Store(fail)
			answers[i], err = fleet.Sample(bounded(t), jobOf("same", policy))
		}
		if err := errors.Join(err, fleet.Close()); err != nil {
			t.Fatal(err)
		}
		if (answers[i].Server == good) != fail {
			t.Errorf("fail %v: answered by %s", fail, answers[i].Server)
		}
	}
	for i, trace := range answers[0].Traces {
		if fmt.Sprint(trace) != fmt.Sprint(answers[1].Traces[i]) {
			t.Errorf("trace %d differs:\n%v\n%v", i, trace, answers[1].Traces[i])
		}
	}
}
