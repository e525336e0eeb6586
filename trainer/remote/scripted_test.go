package remote

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
)

// scriptedRank is a rank whose model is trainertest's: it reads the commands of
// the wire back into those of package trainer.
type scriptedRank struct {
	t     *testing.T
	model *trainertest.Scripted
	batch map[int]trainer.Batch
}

func (s *scriptedRank) handle(r request) reply {
	ctx := context.WithoutCancel(s.t.Context())
	switch r.name {
	case "begin":
		return s.begin(ctx, r)
	case "load":
		b := s.read(r)
		if err := s.model.Load(ctx, b); err != nil {
			return failed(err)
		}
		s.batch[b.Step] = b
		return reply{}
	case "score":
		var body scoreBody
		must(s.t, bus.DecodeStrict(r.body, &body))
		scores, err := s.model.Score(ctx, body.Step, trainer.ScoreOptions{Temperature: body.Temperature, Banned: body.Banned})
		if err != nil {
			return failed(err)
		}
		out := map[string]safetensors.Tensor{"old": vector(scores.Old), "entropy": vector(scores.Entropy)}
		if scores.Reference != nil {
			out["reference"] = vector(scores.Reference)
		}
		return reply{body: map[string]float64{"seconds": 0.1}, tensors: out}
	case "step":
		return s.step(ctx, r)
	case "publish":
		var body publishBody
		must(s.t, bus.DecodeStrict(r.body, &body))
		offer, err := s.model.Publish(ctx, rollout.Policy{Incarnation: body.Incarnation, Version: body.PolicyVersion})
		if err != nil {
			return failed(err)
		}
		return reply{body: published{Path: offer.Path, Digest: offer.Policy.Digest}}
	case "save":
		var body saveBody
		must(s.t, bus.DecodeStrict(r.body, &body))
		pending, err := s.model.Save(ctx, body.Path)
		if err != nil {
			return failed(err)
		}
		saved, err := pending.Wait(ctx)
		if err != nil {
			return failed(err)
		}
		return reply{later: &reply{body: saved}}
	}
	return reply{err: &failure{Type: "FrameError", Message: r.name}}
}

func (s *scriptedRank) begin(ctx context.Context, r request) reply {
	var body beginBody
	must(s.t, bus.DecodeStrict(r.body, &body))
	m := body.Stage
	stage := trainer.Stage{Incarnation: m.Incarnation, Name: m.Name, Model: m.Model, Resume: m.Resume, Step: m.Step,
		Optimizer: trainer.Optimizer{Beta1: m.Optimizer["beta1"], Beta2: m.Optimizer["beta2"], Epsilon: m.Optimizer["epsilon"], WeightDecay: m.Optimizer["weight_decay"]}}
	if m.Reference != "" {
		stage.Reference = &trainer.Reference{Path: m.Reference, Digest: m.ReferenceDigest}
	}
	if err := s.model.Begin(ctx, stage); err != nil {
		return failed(err)
	}
	return reply{}
}

// read is the inverse of layout.shard.
func (s *scriptedRank) read(r request) trainer.Batch {
	var body loadBody
	must(s.t, bus.DecodeStrict(r.body, &body))
	ints := func(name string) []int32 {
		v, err := r.tensors[name].Int32()
		must(s.t, err)
		return v
	}
	prompts, promptOffsets, tokens, offsets := ints("prompt_tokens"), ints("prompt_offsets"), ints("tokens"), ints("offsets")
	mask := r.tensors["mask"].Data
	b := trainer.Batch{Step: body.Step, Plan: trainer.Plan{Ranks: 1, MicroBatches: body.MicroBatches}}
	at := 0
	for i, h := range body.Groups {
		g := trainer.Group{ID: h.ID, Prompt: prompts[promptOffsets[i]:promptOffsets[i+1]]}
		for range h.Traces {
			q := trainer.Sequence{Tokens: tokens[offsets[at]:offsets[at+1]]}
			for _, m := range mask[offsets[at]:offsets[at+1]] {
				q.Mask = append(q.Mask, m == 1)
			}
			g.Traces = append(g.Traces, q)
			at++
		}
		b.Groups = append(b.Groups, g)
	}
	for _, p := range body.Parts {
		b.Plan.Parts = append(b.Plan.Parts, trainer.Part{MicroBatch: p[0], Group: p[1], From: p[2], To: p[3]})
	}
	return b
}

func (s *scriptedRank) step(ctx context.Context, r request) reply {
	var body stepBody
	must(s.t, bus.DecodeStrict(r.body, &body))
	o := body.Options
	flat, err := r.tensors["advantages"].Float32()
	must(s.t, err)
	offsets, err := r.tensors["advantage_offsets"].Int32()
	must(s.t, err)
	a := trainer.Advantages{Options: trainer.StepOptions{
		Loss: trainer.Loss(o.Loss), LearningRate: o.LearningRate, GradClip: o.GradClip, Temperature: o.Temperature,
		KL: trainer.KL{Kind: trainer.KLKind(o.KL), Coef: o.KLCoef}, Denominators: trainer.Denominators(o.Denominators),
	}}
	at := 0
	for _, g := range s.batch[body.Step].Groups {
		var rows [][]float32
		for range g.Traces {
			rows = append(rows, flat[offsets[at]:offsets[at+1]])
			at++
		}
		a.Values = append(a.Values, rows)
	}
	report, err := s.model.Step(ctx, body.Step, a)
	if err != nil {
		return failed(err)
	}
	return reply{body: rankReport{Step: report.Step, GradNorm: report.GradNorm, Tokens: report.Tokens, Sums: map[string]float64{"policy": report.Loss}}}
}

func vector(values [][][]float32) safetensors.Tensor {
	var flat []float32
	for _, rows := range values {
		for _, row := range rows {
			flat = append(flat, row...)
		}
	}
	return safetensors.FromFloat32(flat, len(flat))
}

// failed renders an error as the Python side does.
func failed(err error) reply {
	f := &failure{Type: "CommandError", Message: err.Error()}
	var order *trainer.StepOrderError
	var bad *trainer.BadStepError
	var group *trainer.GroupError
	switch {
	case errors.As(err, &order):
		f.Type, f.Have, f.Got = "StepOrderError", order.Have, order.Got
	case errors.As(err, &bad):
		f.Type, f.Step, f.What = "BadStepError", bad.Step, bad.What
	case errors.As(err, &group):
		f.Type, f.Group, f.Reason = "GroupError", group.Group, group.Err.Error()
	}
	return reply{err: f}
}

// TestConformance runs the suite of the seam over the bus, on a rank whose
// model would show any lost, doubled or reordered step. The same suite runs on
// PyTorch in pytorch_test.go.
func TestConformance(t *testing.T) {
	k := newBus(t, "scripted")
	source := trainertest.NewScripted(trainertest.Script{Root: t.TempDir()})
	must(t, source.Begin(t.Context(), trainer.Stage{Incarnation: 1}))
	offer, err := source.Publish(t.Context(), rollout.Policy{Incarnation: 1})
	must(t, err)
	var incarnation atomic.Uint64
	var last *fakeRank
	trainertest.Run(t, trainertest.Setup{
		Model: offer.Path, Digest: offer.Policy.Digest, AllowLeaks: true, // the bus server is in this process
		Open: func(t *testing.T) trainertest.Trainer {
			rank := &scriptedRank{t: t, model: trainertest.NewScripted(trainertest.Script{Root: t.TempDir()}), batch: map[int]trainer.Batch{}}
			if last != nil {
				last.end() // its process has ended
			}
			last = startRank(t, k, &fakeRank{world: 1, instance: randomName(), handle: rank.handle})
			made, err := New(t.Context(), Options{Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: incarnation.Add(1)}})
			must(t, err)
			return trainertest.Trainer{Backend: made, Keeper: made}
		},
	})
}

// A shard read back is the batch, and a large one travels in parts.
func TestShardsCarryTheBatch(t *testing.T) {
	k := newBus(t, "shards")
	groups := trainertest.Groups(1)
	groups[2].Images = []rollout.Image{{Digest: "d1"}, {Digest: "d2"}}
	groups[3].Prompt = make([]int32, 400_000) // 1.6 MB: parts
	plan, err := trainer.NewPlan(groups, 2, 0)
	must(t, err)
	batch := trainer.Batch{Step: 1, Groups: groups, Plan: plan}
	got := make([]request, 2)
	made, _ := set(t, k, Options{Ranks: 2}, func(rank int, r request) reply {
		if r.name == "load" {
			got[rank] = r
		}
		return reply{}
	})
	must(t, made.Begin(t.Context(), trainer.Stage{Incarnation: 7, Model: "m"}))
	must(t, made.Load(t.Context(), batch))
	seen := map[string]bool{}
	for rank, r := range got {
		var body loadBody
		must(t, json.Unmarshal(r.body, &body))
		if body.MicroBatches != plan.MicroBatches || body.Step != 1 {
			t.Errorf("rank %d: %+v", rank, body)
		}
		read := (&scriptedRank{t: t}).read(r)
		for i, g := range read.Groups {
			want := groups[body.Groups[i].Index]
			if g.ID != want.ID || len(g.Prompt) != len(want.Prompt) || len(g.Traces) != len(want.Traces) || len(body.Groups[i].Images) != len(want.Images) {
				t.Errorf("rank %d group %d is %s with %d prompt tokens, want %s with %d", rank, i, g.ID, len(g.Prompt), want.ID, len(want.Prompt))
			}
			seen[g.ID] = true
		}
	}
	if len(seen) != len(groups) {
		t.Errorf("the ranks got %d of %d groups", len(seen), len(groups))
	}
	if filepath.IsAbs(got[0].name) {
		t.Error("no load was seen")
	}
}
