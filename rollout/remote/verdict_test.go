package remote

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// A frame that was cut off anywhere, or has bytes after its end, is no frame,
// and says so by name; a flipped byte is either found, or leaves a group whose
// arrays fit each other, which the job's own check then judges.
func TestDamagedFrames(t *testing.T) {
	whole, err := EncodeGroup(sampleGroup(), Origin{Run: "r"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, err := DecodeGroup(whole[:n]); !errors.Is(err, ErrFrame) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(whole), err)
		}
	}
	if _, err := DecodeGroup(append(slices.Clone(whole), 0)); !errors.Is(err, ErrFrame) {
		t.Errorf("a byte too many: %v", err)
	}
	for n := range whole {
		for _, flip := range []byte{1, 0x80} {
			damaged := slices.Clone(whole)
			damaged[n] ^= flip
			group, err := DecodeGroup(damaged)
			if err != nil {
				if !errors.Is(err, ErrFrame) {
					t.Fatalf("byte %d: %v", n, err)
				}
				continue
			}
			if _, err := EncodeGroup(group, Origin{Run: "r"}); err != nil {
				t.Fatalf("byte %d flipped gives a group that cannot be: %v", n, err)
			}
		}
	}
}

// jobOf is the job that g answers, if its numbers are such as a policy gives.
func jobOf(g *rollout.Group) rollout.Job {
	longest, top := 1, 0
	for i := range g.Traces {
		trace := &g.Traces[i]
		longest = max(longest, len(trace.Tokens))
		if trace.TopKEntropy != nil {
			top = 4
		}
	}
	g.PolicyReceived = g.PolicySent
	return rollout.Job{ID: g.Job, Question: rollout.Question{ID: g.QuestionID}, Policy: g.PolicySent,
		Sampling: rollout.Sampling{Traces: len(g.Traces), MaxTokens: longest, Seed: g.Seed, TopLogprobs: top}}
}

// An answer passes for the job that it answers exactly when the group itself
// does, and comes out as it went in; for a job that differs in anything that
// identifies it, it is dropped under that job's name.
func TestAnswersAreForOneJob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		group := drawGroup(t)
		job := jobOf(&group)
		frame, err := EncodeGroup(group, Origin{})
		if err != nil {
			t.Fatal(err)
		}
		answer := bus.Message{Schema: SchemaGroup, Data: frame}
		got, err := open(job, answer)
		if want := group.Check(job); (err == nil) != (want == nil) {
			t.Fatalf("over the bus %v, before it %v", err, want)
		}
		if err == nil && !sameGroup(got, group) {
			t.Fatalf("got\n%+v\nwant\n%+v", got, group)
		}
		other := job
		switch rapid.IntRange(0, 4).Draw(t, "differs in") {
		case 0:
			other.ID += "x"
		case 1:
			other.Question.ID += "x"
		case 2:
			other.Sampling.Seed++
		case 3:
			other.Policy.Version++
		case 4:
			other.Policy.Digest += "0"
		}
		var dropped *rollout.Dropped
		if _, err := open(other, answer); !errors.As(err, &dropped) || dropped.Job != other.ID {
			t.Fatalf("an answer to %+v passed for %+v: %v", job, other, err)
		}
	})
}

// Why a worker dropped a job reaches whoever asked for it, reason and text.
func TestDropsCrossTheBus(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := droppedMessage{Version: controlVersion, Job: "j", Reason: rollout.Reason(rapid.StringMatching(`[a-z_]{1,12}`).Draw(t, "reason")), Error: rapid.String().Draw(t, "error")}
		message, err := encodeControl(SchemaDropped, d)
		if err != nil {
			t.Fatal(err)
		}
		var got *rollout.Dropped
		if _, err := open(rollout.Job{ID: "j"}, message); !errors.As(err, &got) || got.Reason != d.Reason || got.Err.Error() != d.Error {
			t.Fatalf("%v, want %+v", err, d)
		}
		d.Reason = "" // a drop must have one: it is a column of the ledger
		if message, err = encodeControl(SchemaDropped, d); err != nil {
			t.Fatal(err)
		}
		if _, err := open(rollout.Job{ID: "j"}, message); !errors.As(err, &got) || got.Reason != rollout.ReasonGarbage {
			t.Fatalf("a drop without a reason: %v", err)
		}
	})
}

// The verdict on an offer lists every server of every worker once, in one order,
// with a reason for each that failed, and is a quorum exactly when enough did
// not; a worker that said nothing, died, fell silent or did not adopt the policy
// itself, and so takes no jobs of it, counts as failed with all of its servers.
func TestVerdictCountsEveryServerOnce(t *testing.T) {
	policy := rollout.Policy{Incarnation: 1, Version: 3, Digest: "d"}
	rapid.Check(t, func(t *rapid.T) {
		f := &Fleet{options: FleetOptions{Quorum: rapid.IntRange(0, 6).Draw(t, "quorum"), Silence: time.Hour}, workers: map[string]*workerState{}}
		const revision = 7
		expected := map[string][]string{}
		var all []string
		good := 0
		for w := range rapid.IntRange(1, 4).Draw(t, "workers") {
			id := fmt.Sprintf("w%d", w)
			report := reportMessage{Worker: id, Revision: revision, Adopted: rollout.Adopted{Policy: policy}}
			for s := range rapid.IntRange(1, 3).Draw(t, "servers") {
				report.Servers = append(report.Servers, fmt.Sprintf("%s-s%d", id, s))
			}
			all = append(all, report.Servers...)
			kind := rapid.SampledFrom([]string{"adopted", "some failed", "failed", "refused", "silent", "stale", "gone", "joined"}).Draw(t, "kind")
			for i, server := range report.Servers {
				one := rollout.ServerAdopted{Server: server}
				if (kind == "some failed" || kind == "refused") && i == 0 {
					one.Err = "no such file"
				}
				if kind == "failed" {
					continue // nothing is known of any server
				}
				report.Adopted.Servers = append(report.Adopted.Servers, one)
				if one.Err == "" && (kind == "adopted" || kind == "some failed" || kind == "joined") {
					good++
				}
			}
			switch kind {
			case "failed":
				report.Error = "the fleet is closed"
			case "refused":
				report.Error = "too few servers adopted the policy"
			case "stale":
				report.Revision = revision - 1
			}
			if kind != "joined" {
				expected[id] = report.Servers
			}
			if kind != "gone" {
				f.workers[id] = &workerState{report: report, heard: time.Now()}
			}
			if kind == "silent" {
				f.workers[id].heard = time.Now().Add(-2 * f.options.Silence)
			}
		}
		adopted, err := f.verdict(policy, revision, expected, time.Second)
		var names []string
		ok := 0
		for _, s := range adopted.Servers {
			names = append(names, s.Server)
			if s.Err == "" {
				ok++
			}
		}
		slices.Sort(all)
		if !slices.Equal(names, all) || ok != good || adopted.Policy != policy {
			t.Fatalf("%+v, want the servers %v, %d of them well", adopted, all, good)
		}
		need := f.options.Quorum
		if need == 0 {
			need = len(all)/2 + 1
		}
		var quorum *rollout.QuorumError
		if errors.As(err, &quorum) != (good < need) || quorum != nil && quorum.Need != need {
			t.Fatalf("%d of %d servers are well, %d are needed: %v", good, len(all), need, err)
		}
		if quorum != nil && good < len(all) && !strings.Contains(err.Error(), "; server ") {
			t.Fatalf("no server is named: %v", err)
		}
	})
}

// Names of servers become keys of leases: one token each, and no two alike.
func TestServerKeysAreNames(t *testing.T) {
	seen := map[string]string{}
	rapid.Check(t, func(t *rapid.T) {
		server := rapid.OneOf(rapid.String(), rapid.StringMatching(`http://[a-z.]{1,8}:[0-9]{1,4}/?`)).Draw(t, "server")
		key := serverKey(server)
		if err := bus.CheckName(key); err != nil {
			t.Fatal(err)
		}
		if other, taken := seen[key]; taken && other != server {
			t.Fatalf("%q and %q have the key %s", server, other, key)
		}
		seen[key] = server
	})
}

// Options that are right are kept, those that are zero get what their comments
// say, and every one that is wrong is named at once.
func TestOptionsTakeDefaults(t *testing.T) {
	o, err := FleetOptions{Conn: &bus.Conn{}, Scope: bus.Scope{Run: "r", Incarnation: 1}, Silence: time.Second}.withDefaults()
	if err != nil || o.MinWorkers != 1 || o.AdoptTimeout != 2*time.Minute || o.Silence != time.Second || o.Quorum != 0 || o.Log == nil {
		t.Errorf("%+v, %v", o, err)
	}
	for name, o := range map[string]FleetOptions{
		"quorum -1": {Quorum: -1}, "workers -1": {MinWorkers: -1}, "adopt timeout -1ns": {AdoptTimeout: -1}, "silence -1ns": {Silence: -1},
	} {
		if _, err := o.withDefaults(); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "incarnation 0") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, o := range map[string]WorkerOptions{
		"slots -1": {Slots: -1}, "stall -1ns": {Stall: -1}, "lease -1ns": {LeaseTTL: -1}, "wait -1ns": {LeaseWait: -1}, "failures -1": {Failures: -1},
	} {
		if _, err := o.withDefaults(); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "no servers") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
