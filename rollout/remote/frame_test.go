package remote

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
)

// drawGroup makes any group that can be encoded.
func drawGroup(t *rapid.T) rollout.Group {
	policy := rapid.Custom(func(t *rapid.T) rollout.Policy {
		return rollout.Policy{
			Incarnation: rapid.Uint64().Draw(t, "incarnation"), Version: rapid.IntRange(0, 1<<30).Draw(t, "version"),
			Digest: rapid.StringMatching(`[0-9a-f]{0,64}`).Draw(t, "digest"),
		}
	})
	at := time.Unix(1_700_000_000, 0).UTC()
	g := rollout.Group{
		Job: rollout.JobID(rapid.StringMatching(`[A-Za-z0-9_-]{1,20}`).Draw(t, "job")), QuestionID: rapid.String().Draw(t, "question"),
		PromptTokens: rapid.SliceOf(rapid.Int32()).Draw(t, "prompt"), PolicySent: policy.Draw(t, "sent"), PolicyReceived: policy.Draw(t, "received"),
		Server: rapid.String().Draw(t, "server"), Seed: rapid.Int64().Draw(t, "seed"),
		Started: at, Finished: at.Add(time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "took"))),
		Traces: []rollout.Trace{},
	}
	withEntropy := rapid.Bool().Draw(t, "entropy")
	for range rapid.IntRange(0, 5).Draw(t, "traces") {
		n := rapid.IntRange(0, 20).Draw(t, "tokens")
		trace := rollout.Trace{
			Tokens:   rapid.SliceOfN(rapid.Int32(), n, n).Draw(t, "ids"),
			Logprobs: rapid.SliceOfN(rapid.Float32Range(-50, 0), n, n).Draw(t, "logprobs"),
			Text:     rapid.String().Draw(t, "text"), Finish: rollout.Finish(rapid.IntRange(0, 2).Draw(t, "finish")),
		}
		if withEntropy {
			trace.TopKEntropy = rapid.SliceOfN(rapid.Float32Range(0, 5), n, n).Draw(t, "entropies")
		}
		g.Traces = append(g.Traces, trace)
	}
	return g
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGroup(t)
		data, err := EncodeGroup(g, Origin{Run: "r", Tokenizer: "d", Images: []string{"a", "b"}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeGroup(data)
		if err != nil {
			t.Fatal(err)
		}
		if !sameGroup(got, g) {
			t.Fatalf("got\n%+v\nwant\n%+v", got, g)
		}
		again, err := EncodeGroup(got, Origin{Run: "r", Tokenizer: "d", Images: []string{"a", "b"}})
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("the frame of what was read is another one (%v)", err)
		}
	})
}

// sameGroup compares two groups; empty and nil slices are the same, except for
// entropies.
func sameGroup(a, b rollout.Group) bool {
	if len(a.Traces) != len(b.Traces) {
		return false
	}
	for i := range a.Traces {
		if (a.Traces[i].TopKEntropy == nil) != (b.Traces[i].TopKEntropy == nil) {
			return false
		}
	}
	// Printing shows every field, times in UTC included, and no capacity.
	return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b)
}

// sampleGroup is a small valid group.
func sampleGroup() rollout.Group {
	at := time.Unix(1_700_000_000, 500).UTC()
	return rollout.Group{
		Job: "job", QuestionID: "q", PromptTokens: []int32{1, 2}, Server: "s", Seed: 1024, Started: at, Finished: at,
		Traces: []rollout.Trace{
			{Tokens: []int32{3, 4}, Logprobs: []float32{-1, -2}, Text: "two"},
			{Tokens: []int32{5}, Logprobs: []float32{-3}, Text: "one", Finish: rollout.FinishLength},
		},
	}
}

// frameOf encodes sampleGroup after change has had its way with the file.
func frameOf(t testing.TB, change func(*safetensors.File)) []byte {
	t.Helper()
	data, err := EncodeGroup(sampleGroup(), Origin{})
	if err != nil {
		t.Fatal(err)
	}
	file, err := safetensors.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	change(&file)
	if data, err = safetensors.Encode(file); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecodeGroupRefuses(t *testing.T) {
	set := func(key, value string) func(*safetensors.File) {
		return func(f *safetensors.File) { f.Metadata[key] = value }
	}
	tensor := func(name string, value safetensors.Tensor) func(*safetensors.File) {
		return func(f *safetensors.File) { f.Tensors[name] = value }
	}
	tests := map[string]struct {
		change func(*safetensors.File)
		want   string
	}{
		"other schema":       {set("schema", "x"), `schema "x"`},
		"higher version":     {set("version", "2.0"), `version "2.0"`},
		"no version":         {set("version", ""), "version"},
		"bad seed":           {set("seed", "x"), "seed"},
		"bad policy":         {set("policy_sent", `{"incarnation":-1}`), "policy_sent"},
		"policy with extras": {set("policy_received", `{"x":1}`), "policy_received"},
		"bad time":           {set("started", "yesterday"), "started"},
		"offsets too few":    {tensor(tensorOffsets, safetensors.FromInt32([]int32{0, 3})), "offsets"},
		"offsets falling":    {tensor(tensorOffsets, safetensors.FromInt32([]int32{0, 4, 3})), "falls"},
		"offsets past end":   {tensor(tensorOffsets, safetensors.FromInt32([]int32{0, 2, 9})), "offsets"},
		"offsets not from 0": {tensor(tensorOffsets, safetensors.FromInt32([]int32{1, 2, 3})), "offsets"},
		"negative offset":    {tensor(tensorTextOffsets, safetensors.FromInt32([]int32{0, -1, 6})), "falls"},
		"short logprobs":     {tensor(tensorLogprobs, safetensors.FromFloat32([]float32{1})), "log-probabilities"},
		"short entropy":      {tensor(tensorEntropy, safetensors.FromFloat32([]float32{1})), "entropies"},
		"wrong type":         {tensor(tensorTokens, safetensors.FromFloat32([]float32{1, 2, 3})), "I32"},
		"wrong rank":         {tensor(tensorTokens, safetensors.FromInt32([]int32{1, 2, 3}, 1, 3)), "shape"},
		"unknown finish":     {tensor(tensorFinish, safetensors.FromBytes([]byte{0, 9})), "finish 9"},
	}
	for _, key := range []string{"job", "question", "seed", "server", "policy_sent", "policy_received", "started", "finished"} {
		tests["no "+key] = struct {
			change func(*safetensors.File)
			want   string
		}{func(f *safetensors.File) { delete(f.Metadata, key) }, key}
	}
	for _, name := range []string{tensorTokens, tensorLogprobs, tensorOffsets, tensorPrompt, tensorFinish, tensorText, tensorTextOffsets} {
		tests["no tensor "+name] = struct {
			change func(*safetensors.File)
			want   string
		}{func(f *safetensors.File) { delete(f.Tensors, name) }, name}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeGroup(frameOf(t, tt.change))
			if !errors.Is(err, ErrFrame) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want ErrFrame with %q", err, tt.want)
			}
		})
	}
	if _, err := DecodeGroup([]byte("{}")); !errors.Is(err, ErrFrame) {
		t.Fatalf("got %v", err)
	}
}

func TestDecodeGroupIgnoresWhatItDoesNotKnow(t *testing.T) {
	got, err := DecodeGroup(frameOf(t, func(f *safetensors.File) {
		f.Metadata["version"], f.Metadata["colour"] = "1.7", "red"
		f.Tensors["extra"] = safetensors.FromInt64([]int64{1})
	}))
	if err != nil || !sameGroup(got, sampleGroup()) {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestEncodeGroupRefusesUnevenTraces(t *testing.T) {
	for name, damage := range map[string]func(*rollout.Group){
		"logprobs":       func(g *rollout.Group) { g.Traces[1].Logprobs = nil },
		"entropy":        func(g *rollout.Group) { g.Traces[0].TopKEntropy = []float32{1} },
		"entropy of one": func(g *rollout.Group) { g.Traces[1].TopKEntropy = []float32{1} },
	} {
		g := sampleGroup()
		damage(&g)
		if _, err := EncodeGroup(g, Origin{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestControlIsStrict(t *testing.T) {
	good := rollout.Job{ID: "j", Sampling: rollout.Sampling{Traces: 2, MaxTokens: 8}}
	message, err := encodeControl(SchemaJob, jobMessage{Version: 1, Job: good})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeJob(message); err != nil || !reflect.DeepEqual(got, good) {
		t.Fatalf("%+v, %v", got, err)
	}
	body := string(message.Data)
	for name, tt := range map[string]struct{ schema, body, want string }{
		"other schema":   {SchemaReport, body, "schema"},
		"unknown key":    {SchemaJob, strings.Replace(body, `"version":1`, `"version":1,"colour":"red"`, 1), "colour"},
		"newer version":  {SchemaJob, strings.Replace(body, `"version":1`, `"version":2,"colour":"red"`, 1), "version 2"},
		"no version":     {SchemaJob, strings.Replace(body, `"version":1,`, ``, 1), "version 0"},
		"trailing bytes": {SchemaJob, body + "{}", "after"},
		"not JSON":       {SchemaJob, "job", "invalid"},
		"empty":          {SchemaJob, "", "unexpected end"},
		"id with a dot":  {SchemaJob, strings.Replace(body, `"id":"j"`, `"id":"a.b"`, 1), "job id"},
		"no traces":      {SchemaJob, strings.Replace(body, `"traces":2`, `"traces":0`, 1), "0 traces"},
		"many traces":    {SchemaJob, strings.Replace(body, `"traces":2`, `"traces":1025`, 1), "1025 traces"},
		"wrong type":     {SchemaJob, strings.Replace(body, `"traces":2`, `"traces":"2"`, 1), "traces"},
	} {
		_, err := decodeJob(bus.Message{Schema: tt.schema, Data: []byte(tt.body)})
		if !errors.Is(err, ErrControl) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want ErrControl with %q", name, err, tt.want)
		}
	}
}

func TestOpenRefusesForeignAnswers(t *testing.T) {
	job := rollout.Job{ID: "j", Sampling: rollout.Sampling{Traces: 1, MaxTokens: 8}}
	other, err := encodeControl(SchemaDropped, droppedMessage{Version: 1, Job: "k", Reason: rollout.ReasonRefused})
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]bus.Message{
		"unknown schema":  {Schema: "x/1", Data: []byte("{}")},
		"broken frame":    {Schema: SchemaGroup, Data: []byte("{}")},
		"broken drop":     {Schema: SchemaDropped, Data: []byte("{")},
		"drop of another": other,
	} {
		_, err := open(job, m)
		var dropped *rollout.Dropped
		if !errors.As(err, &dropped) || dropped.Reason != rollout.ReasonGarbage || dropped.Job != "j" {
			t.Errorf("%s: got %v, want job j dropped: garbage", name, err)
		}
	}
}

// FuzzDecodeGroup checks that no bytes crash the reader and that what it
// accepts is consistent and can be written again.
func FuzzDecodeGroup(f *testing.F) {
	same := func(*safetensors.File) {}
	f.Add(frameOf(f, same))
	f.Add(frameOf(f, func(file *safetensors.File) { delete(file.Tensors, tensorText) }))
	f.Add(frameOf(f, func(file *safetensors.File) {
		file.Tensors[tensorOffsets] = safetensors.FromInt32([]int32{0, -5, 3})
	}))
	f.Add(frameOf(f, func(file *safetensors.File) {
		file.Tensors[tensorEntropy] = safetensors.FromFloat32([]float32{1, 2, 3})
	}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := DecodeGroup(data)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("error without ErrFrame: %v", err)
			}
			return
		}
		_ = g.Check(rollout.Job{ID: g.Job, Sampling: rollout.Sampling{Traces: len(g.Traces), MaxTokens: 10}})
		if _, err := EncodeGroup(g, Origin{}); err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
	})
}

// FuzzDecodeJob checks that no bytes crash the reader of jobs and that what it
// accepts survives being written.
func FuzzDecodeJob(f *testing.F) {
	good, err := encodeControl(SchemaJob, jobMessage{Version: 1, Job: rollout.Job{
		ID: "j", Question: rollout.Question{ID: "q", Messages: []rollout.Message{{Role: "user", Parts: []rollout.Part{{Text: "x"}}}}},
		Sampling: rollout.Sampling{Traces: 2, MaxTokens: 8, Banned: []int32{1}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.Data)
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"job":{"id":"a b"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		job, err := decodeJob(bus.Message{Schema: SchemaJob, Data: data})
		if err != nil {
			return
		}
		again, err := json.Marshal(jobMessage{Version: 1, Job: job})
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		if second, err := decodeJob(bus.Message{Schema: SchemaJob, Data: again}); err != nil || !reflect.DeepEqual(job, second) {
			t.Fatalf("%+v became %+v, %v", job, second, err)
		}
	})
}

// FuzzControl does the same for the other control messages.
func FuzzControl(f *testing.F) {
	f.Add([]byte(`{"version":1,"incarnation":3,"offer":{"policy":{"incarnation":3,"version":0,"digest":""},"transport":"directory"}}`))
	f.Add([]byte(`{"version":1,"job":"j","reason":"refused","error":"x"}`))
	f.Add([]byte(`{"version":1,"worker":"w","servers":["s"],"revision":4,"running":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for schema, into := range map[string]any{
			SchemaPolicy: &policyMessage{}, SchemaDropped: &droppedMessage{}, SchemaReport: &reportMessage{},
		} {
			err := decodeControl(schema, bus.Message{Schema: schema, Data: data}, into)
			if err != nil && !errors.Is(err, ErrControl) {
				t.Fatalf("error without ErrControl: %v", err)
			}
		}
	})
}
