package rollout_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

// texts are what a bus or a server may have to carry: whatever Go writes as JSON.
var texts = rapid.StringMatching(`[ -~\n\t"\\<>&\x{e9}\x{4e00}\x{1f441}]{0,12}`)

var policies = rapid.Custom(func(t *rapid.T) rollout.Policy {
	return rollout.Policy{Incarnation: rapid.Uint64().Draw(t, "incarnation"), Version: rapid.Int().Draw(t, "version"), Digest: rapid.StringMatching(`[0-9a-f]{0,64}`).Draw(t, "digest")}
})

var questions = rapid.Custom(func(t *rapid.T) rollout.Question {
	q := rollout.Question{
		ID: texts.Draw(t, "id"), Kind: rapid.SampledFrom([]rollout.Kind{rollout.SingleChoice, rollout.MultipleChoice, rollout.TrueFalse, rollout.Open, rollout.Caption}).Draw(t, "kind"),
		Level: rapid.SampledFrom([]rollout.Level{rollout.Basic, rollout.Complex}).Draw(t, "level"), Modality: texts.Draw(t, "modality"),
		Split: texts.Draw(t, "split"), Text: texts.Draw(t, "text"), Gold: texts.Draw(t, "gold"), Response: texts.Draw(t, "response"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "messages") {
		m := rollout.Message{Role: rapid.SampledFrom([]string{"system", "user", "assistant"}).Draw(t, "role")}
		for range rapid.IntRange(0, 3).Draw(t, "parts") {
			p := rollout.Part{Text: texts.Draw(t, "part")}
			if rapid.Bool().Draw(t, "image") {
				p.Image = &rollout.Image{Digest: texts.Draw(t, "digest"), MediaType: texts.Draw(t, "media")}
			}
			m.Parts = append(m.Parts, p)
		}
		q.Messages = append(q.Messages, m)
	}
	return q
})

var jobs = rapid.Custom(func(t *rapid.T) rollout.Job {
	number := rapid.Float64Range(0, 2)
	job := rollout.Job{
		ID: rollout.JobID(rapid.StringMatching(`[A-Za-z0-9_-]{1,8}`).Draw(t, "id")), Stage: texts.Draw(t, "stage"),
		Step: rapid.Int().Draw(t, "step"), Index: rapid.Int().Draw(t, "index"), Epoch: rapid.Int().Draw(t, "epoch"),
		Question: questions.Draw(t, "question"), Policy: policies.Draw(t, "policy"), Purpose: rapid.SampledFrom([]rollout.Purpose{rollout.Train, rollout.Eval}).Draw(t, "purpose"),
		Sampling: rollout.Sampling{
			Traces: rapid.Int().Draw(t, "traces"), Temperature: number.Draw(t, "temperature"), TopP: number.Draw(t, "top_p"), TopK: rapid.Int().Draw(t, "top_k"),
			MinP: number.Draw(t, "min_p"), MaxTokens: rapid.Int().Draw(t, "max_tokens"), Seed: rapid.Int64().Draw(t, "seed"), TopLogprobs: rapid.Int().Draw(t, "top"),
		},
	}
	if banned := rapid.SliceOfN(rapid.Int32(), 0, 3).Draw(t, "banned"); len(banned) > 0 {
		job.Sampling.Banned = banned
	}
	if rapid.Bool().Draw(t, "deadline") {
		job.Deadline = time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()
	}
	return job
})

var offers = rapid.Custom(func(t *rapid.T) rollout.Offer {
	o := rollout.Offer{
		Policy: policies.Draw(t, "policy"), Transport: rapid.SampledFrom([]rollout.Transport{rollout.ByDirectory, rollout.ByLoRA, rollout.ByNCCL, rollout.AsServed}).Draw(t, "by"),
		Path: texts.Draw(t, "path"), Base: texts.Draw(t, "base"),
	}
	if rapid.Bool().Draw(t, "nccl") {
		o.NCCL = &rollout.NCCLOffer{URL: texts.Draw(t, "url"), Token: texts.Draw(t, "token")}
	}
	return o
})

// roundTrips fails unless value comes back from JSON as it was, through a reader
// that refuses keys it does not know, and unless writing it again gives the
// same bytes: jobs are compared and offers watched as bytes.
func roundTrips[T any](t *rapid.T, value T) {
	first, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var back T
	reader := json.NewDecoder(bytes.NewReader(first))
	reader.DisallowUnknownFields()
	if err := reader.Decode(&back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(value, back) {
		t.Fatalf("%+v came back as %+v", value, back)
	}
	if second, err := json.Marshal(back); err != nil || !bytes.Equal(first, second) {
		t.Fatalf("%s, then %s (%v)", first, second, err)
	}
}

func TestJSONRoundTrips(t *testing.T) {
	t.Run("job", func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { roundTrips(t, jobs.Draw(t, "job")) }) })
	t.Run("offer", func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { roundTrips(t, offers.Draw(t, "offer")) }) })
	t.Run("adopted", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			a := rollout.Adopted{Policy: policies.Draw(t, "policy"), Seconds: rapid.Float64Range(0, 1e6).Draw(t, "seconds")}
			for range rapid.IntRange(0, 3).Draw(t, "servers") {
				a.Servers = append(a.Servers, rollout.ServerAdopted{Server: texts.Draw(t, "server"), Seconds: rapid.Float64Range(0, 9).Draw(t, "s"), Err: texts.Draw(t, "error")})
			}
			roundTrips(t, a)
		})
	})
}

// Every sampling value is sent even where it is Go's zero: a server fills a gap
// with a default of its own, and greedy (temperature 0) would become 1.
func TestZerosOfSamplingAreSent(t *testing.T) {
	data, err := json.Marshal(rollout.Sampling{})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"traces", "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "top_logprobs"} {
		if !strings.Contains(string(data), `"`+key+`":0`) {
			t.Errorf("%s is not sent: %s", key, data)
		}
	}
}

// The images of a question are those of its messages, in the order shown, and a
// part with a text beside its image counts once.
func TestImagesAreInTheOrderShown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := questions.Draw(t, "question")
		var want []rollout.Image
		for _, m := range q.Messages {
			for _, p := range m.Parts {
				if p.Image != nil {
					want = append(want, *p.Image)
				}
			}
		}
		got := q.Images()
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
		if len(got) > 0 { // what is handed out is a copy: questions are shared
			got[0].Digest += "x"
			if slices.Equal(q.Images(), got) {
				t.Fatal("a caller changed the question")
			}
		}
	})
}

// Choice i of a job is drawn with its base seed + i. Over many questions,
// epochs and retries of a run no two traces have a seed in common, none
// overflows, and the incarnation and the policy do not enter.
func TestNoTwoTracesOfARunShareASeed(t *testing.T) {
	const largest = 1024
	owner := map[int64]string{}
	for _, stage := range []string{"rl", "rl2"} {
		for question := range 400 {
			for _, epoch := range []int{0, 1, 2, 11, 111} { // what a careless join of numbers would confuse
				for _, attempt := range []int{0, 1, 11} {
					base := rollout.BaseSeed(7, stage, fmt.Sprintf("q%d", question), epoch, attempt)
					name := fmt.Sprint(stage, question, epoch, attempt)
					if base < 0 || base > math.MaxInt64-(largest-1) {
						t.Fatalf("%s: the last choice of base %d overflows", name, base)
					}
					// Bases are multiples of the largest group, so two ranges meet only
					// where bases are equal.
					if base%largest != 0 {
						t.Fatalf("%s: base %d leaves no room for %d choices", name, base, largest)
					}
					if other, taken := owner[base]; taken {
						t.Fatalf("%s and %s have base %d", name, other, base)
					}
					owner[base] = name
				}
			}
		}
	}
}

// A group at the very edge of what a job asks for passes, one token or trace
// beyond it does not.
func TestCheckAtTheEdges(t *testing.T) {
	trace := func(n int) rollout.Trace {
		return rollout.Trace{Tokens: make([]int32, n), Logprobs: make([]float32, n), TopKEntropy: make([]float32, n)}
	}
	for _, tt := range []struct {
		name   string
		change func(*rollout.Group)
		want   string // of the error; empty passes
	}{
		{"most tokens", func(g *rollout.Group) { g.Traces[0] = trace(3) }, ""},
		{"one too many", func(g *rollout.Group) { g.Traces[0] = trace(4) }, "trace 0: 4 tokens, want at most 3"},
		{"rounding above zero", func(g *rollout.Group) { g.Traces[1].Logprobs[0] = 9e-4 }, ""},
		{"more than rounding", func(g *rollout.Group) { g.Traces[1].Logprobs[0] = 2e-3 }, "trace 1: log-probability 0.002 of token 0"},
		{"rounding below zero", func(g *rollout.Group) { g.Traces[1].TopKEntropy[1] = -9e-4 }, ""},
		{"negative entropy", func(g *rollout.Group) { g.Traces[1].TopKEntropy[1] = -2e-3 }, "trace 1: top-k entropy -0.002 of token 1"},
		{"token 0", func(g *rollout.Group) { g.PromptTokens = []int32{0}; g.Traces[0].Tokens[0] = 0 }, ""},
		{"negative prompt token", func(g *rollout.Group) { g.PromptTokens = []int32{3, -1} }, "prompt: token 1 has id -1"},
		{"an extra trace", func(g *rollout.Group) { g.Traces = append(g.Traces, trace(1)) }, "3 traces, want 2"},
		{"no trace", func(g *rollout.Group) { g.Traces = nil }, "0 traces, want 2"},
		{"fewer entropies", func(g *rollout.Group) { g.Traces[0].TopKEntropy = g.Traces[0].TopKEntropy[:1] }, "1 top-k entropies for 2 tokens"},
		{"more log-probabilities", func(g *rollout.Group) { g.Traces[0].Logprobs = make([]float32, 3) }, "3 log-probabilities for 2 tokens"},
		{"another digest", func(g *rollout.Group) { g.PolicyReceived.Digest = "e" }, "sampled by policy 2.3-d, finished under 2.3-e, want 2.3-d"},
		{"another seed", func(g *rollout.Group) { g.Seed += 1024 }, `seed 2048, want "j", "q", 1024`},
		{"unknown finish", func(g *rollout.Group) { g.Traces[1].Finish = 3 }, "trace 1: unknown finish 3"},
		{"aborted and empty", func(g *rollout.Group) { g.Traces[1] = rollout.Trace{Finish: rollout.FinishAbort} }, "trace 1 was aborted by the server"},
	} {
		job, group := answered()
		tt.change(&group)
		err := group.Check(job)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// Check looks and does not touch; what passes once passes again.
func TestCheckChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		job, group := drawAnswered(t)
		before := fmt.Sprintf("%+v", group)
		tokens := 0
		for _, trace := range group.Traces {
			tokens += len(trace.Tokens)
		}
		if err := group.Check(job); err != nil || fmt.Sprintf("%+v", group) != before || group.Tokens() != tokens {
			t.Fatalf("%v, %d tokens of %d", err, group.Tokens(), tokens)
		}
		// The order of traces is that of their seeds; the check does not depend on it.
		slices.Reverse(group.Traces)
		if err := group.Check(job); err != nil {
			t.Fatal(err)
		}
	})
}

func TestErrorsSayWhichAndWhy(t *testing.T) {
	adopted := rollout.Adopted{
		Policy:  rollout.Policy{Incarnation: 4, Version: 2, Digest: strings.Repeat("ab", 32)},
		Servers: []rollout.ServerAdopted{{Server: "a"}, {Server: "b", Err: "no such file"}, {Server: "c", Err: "too late"}},
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&rollout.Dropped{Job: "j", Reason: rollout.ReasonDeadline}, "job j dropped: deadline"},
		{&rollout.Dropped{Job: "j", Reason: rollout.ReasonRefused, Err: io.ErrUnexpectedEOF}, "job j dropped: refused: unexpected EOF"},
		{&rollout.QuorumError{Adopted: adopted, Need: 2, Waited: 1500*time.Millisecond + 7}, "policy 4.2-abababababab adopted by 1 of 3 servers, need 2, after 1.5s; server b: no such file"},
		{&rollout.QuorumError{Adopted: rollout.Adopted{Policy: rollout.Policy{Digest: "ab"}}, Need: 1, Waited: time.Second}, "policy 0.0-ab adopted by 0 of 0 servers, need 1, after 1s"},
	} {
		if tt.err.Error() != tt.want {
			t.Errorf("got  %s\nwant %s", tt.err, tt.want)
		}
	}
	wrapped := fmt.Errorf("step 3: %w", &rollout.Dropped{Err: context.DeadlineExceeded})
	if !errors.Is(wrapped, context.DeadlineExceeded) || errors.Unwrap(&rollout.Dropped{}) != nil {
		t.Error("the cause of a dropped group cannot be asked for")
	}
	for finish, want := range map[rollout.Finish]string{rollout.FinishStop: "stop", rollout.FinishLength: "length", rollout.FinishAbort: "abort", 3: "unknown"} {
		if finish.String() != want {
			t.Errorf("finish %d is %q, want %q", finish, finish, want)
		}
	}
}

// Progress reaches the innermost mark, at every call, through contexts derived
// from it, and is harmless without one.
func TestProgressReachesTheNearestMark(t *testing.T) {
	rollout.Progress(t.Context())
	outer, inner := 0, 0
	a := rollout.WithProgress(t.Context(), func() { outer++ })
	b := rollout.WithProgress(a, func() { inner++ })
	derived, cancel := context.WithCancel(b)
	rollout.Progress(derived)
	cancel()
	rollout.Progress(derived) // a piece that comes while the job is given up
	rollout.Progress(a)
	if outer != 1 || inner != 2 {
		t.Errorf("the outer mark was called %d times, the inner %d", outer, inner)
	}
}
