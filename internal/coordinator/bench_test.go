package coordinator

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/safetensors"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// lengthsKey names the environment variable with a file of response lengths,
// one integer a line, five lines a question. Without it all are 2,048.
const lengthsKey = "CONTROLLER_LENGTHS"

const (
	benchQuestions = 512
	benchTraces    = 5
	benchTokens    = 2048
	benchPrompt    = 512 // tokens, 256 of them of the image
	benchRanks     = 8
)

// BenchmarkController measures what the coordinator itself does for one step:
// check and score the answers, group, take in entropies, shape, plan, and
// encode for the wire. Sampling and training are stubs that answer at once. It
// prints one JSON line.
func BenchmarkController(b *testing.B) {
	lengths := benchLengths(b)
	w := newBenchWorld(b, lengths)
	var best benchLine
	for b.Loop() {
		line := w.step(b)
		if best.Seconds == 0 || line.Seconds < best.Seconds {
			best = line
		}
	}
	best.PeakRSS = peakRSS(b)
	text, err := json.Marshal(best)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("\n%s\n", text)
	b.ReportMetric(best.Seconds, "s/step")
}

type benchLine struct {
	Bench     string             `json:"bench"`
	Questions int                `json:"questions"`
	Traces    int                `json:"traces"`
	Tokens    int                `json:"tokens"`
	Cores     int                `json:"cores"`
	Seconds   float64            `json:"seconds"`
	Phases    map[string]float64 `json:"phases"`
	Ledger    float64            `json:"ledger_and_metrics"` // not in Seconds
	WireBytes int                `json:"wire_bytes"`
	PeakRSS   int64              `json:"peak_rss_bytes"`
}

func benchLengths(b *testing.B) []int {
	lengths := slices.Repeat([]int{benchTokens}, benchQuestions*benchTraces)
	path := os.Getenv(lengthsKey)
	if path == "" {
		return lengths
	}
	file, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	lengths = lengths[:0]
	for s := bufio.NewScanner(file); s.Scan(); {
		n, err := strconv.Atoi(strings.TrimSpace(s.Text()))
		if err != nil || n < 1 {
			b.Fatalf("%s: line %d: %q is no length", path, len(lengths)+1, s.Text())
		}
		lengths = append(lengths, n)
	}
	if len(lengths) < benchTraces || len(lengths)%benchTraces != 0 {
		b.Fatalf("%s: %d lengths, want a multiple of %d", path, len(lengths), benchTraces)
	}
	return lengths
}

// benchWorld is a sampled batch and a ring whose trainer only takes frames.
type benchWorld struct {
	ring   *ring
	jobs   []rollout.Job
	groups []rollout.Group
	wire   *wireTrainer
	tokens int
}

func newBenchWorld(b *testing.B, lengths []int) *benchWorld {
	b.Helper()
	k, err := newKit(b.TempDir(), 1, nil)
	if err != nil {
		b.Fatal(err)
	}
	w := &benchWorld{wire: &wireTrainer{}}
	o := &k.options
	o.RL.Sampling.Traces, o.RL.Sampling.MaxTokens = benchTraces, max(benchTokens, slices.Max(lengths))
	o.Stages[0].Batch = len(lengths) / benchTraces
	o.Limits.RewardJobs = 2 * runtime.GOMAXPROCS(0)
	o.Parts.Backend = w.wire
	o.Parts.Plan = func(groups []trainer.Group) (trainer.Plan, error) { return trainer.NewPlan(groups, benchRanks, 32768) }
	c, err := New(*o)
	if err != nil {
		b.Fatal(err)
	}
	if w.ring, err = c.newRing(c.o.Stages[0], place{}, start{}); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range len(lengths) / benchTraces {
		q := question(i)
		job := rollout.Job{ID: rollout.JobID(fmt.Sprintf("rl-1-%d", i)), Index: i, Question: q, Sampling: c.o.RL.Sampling}
		job.Sampling.Seed = rollout.BaseSeed(1, "rl", q.ID, 0, 0)
		g := rollout.Group{Job: job.ID, QuestionID: q.ID, Seed: job.Sampling.Seed, PromptTokens: make([]int32, benchPrompt)}
		for k := range benchTraces {
			g.Traces = append(g.Traces, benchTrace(rng, q, lengths[i*benchTraces+k]))
		}
		w.tokens += g.Tokens()
		w.jobs, w.groups = append(w.jobs, job), append(w.groups, g)
	}
	return w
}

// benchTrace is a response of n tokens, four characters each, that is right
// half of the time.
func benchTrace(rng *rand.Rand, q rollout.Question, n int) rollout.Trace {
	t := rollout.Trace{Tokens: make([]int32, n), Logprobs: make([]float32, n)}
	for i := range t.Tokens {
		t.Tokens[i] = rng.Int32N(150000)
		t.Logprobs[i] = -rng.Float32()
	}
	answer := q.Gold
	if rng.IntN(2) == 0 {
		answer = "Z"
	}
	t.Text = "<think>" + strings.Repeat("look at ", max(1, n/2)) + "</think><answer>" + answer + "</answer>"
	return t
}

// step does one step's work and times its phases.
func (w *benchWorld) step(b *testing.B) benchLine {
	ctx, r := b.Context(), w.ring
	line := benchLine{Bench: "controller", Questions: len(w.groups), Traces: benchTraces, Tokens: w.tokens,
		Cores: runtime.GOMAXPROCS(0), Phases: map[string]float64{}}
	w.wire.bytes, r.update = 0, 0
	begun := time.Now()
	timed := func(name string, f func() error) {
		started := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		line.Phases[name] = time.Since(started).Seconds()
	}
	batch := &rolloutBatch{step: 1, groups: make([]scored, len(w.groups)), admitted: len(w.groups)}
	timed("check_and_reward", func() error {
		hands := newCrew(ctx)
		for i, g := range w.groups {
			hands.run(func(ctx context.Context) error {
				if err := checkGroup(w.jobs[i], g); err != nil {
					return err
				}
				scores, err := r.score(ctx, w.jobs[i].Question, g)
				batch.groups[i] = scored{Job: w.jobs[i], Scores: scores, group: g}
				return err
			})
		}
		return hands.wait()
	})
	l := &learned{batch: batch, seconds: map[string]float64{}}
	timed("group_plan_encode", func() error { return r.load(ctx, l) })
	w.wire.prepare() // what the trainer computes is not the coordinator's time
	timed("entropies", func() error { return r.scoreAll(ctx, l) })
	timed("shape", func() error { return r.shape(ctx, l) })
	timed("advantages_encode", func() error { return r.apply(ctx, l) })
	line.Seconds = time.Since(begun).Seconds() - w.wire.prepared.Seconds()
	line.WireBytes = w.wire.bytes
	begun = time.Now() // beside the step: what is written about it
	r.ledger(l)
	r.values(l)
	line.Ledger = time.Since(begun).Seconds()
	return line
}

// wireTrainer encodes what it is given as the trainer's frames are, a frame a
// rank, and answers at once.
type wireTrainer struct {
	trainer.Backend
	batch    trainer.Batch
	scores   trainer.Scores
	prepared time.Duration
	bytes    int
}

// prepare makes the trainer's answer beforehand.
func (t *wireTrainer) prepare() {
	started := time.Now()
	if t.scores.Old == nil {
		rng := rand.New(rand.NewPCG(3, 4))
		fill := func(sign float32) [][][]float32 {
			values := make([][][]float32, len(t.batch.Groups))
			for q, g := range t.batch.Groups {
				for _, s := range g.Traces {
					row := make([]float32, len(s.Tokens))
					for i := range row {
						row[i] = sign * rng.Float32()
					}
					values[q] = append(values[q], row)
				}
			}
			return values
		}
		t.scores = trainer.Scores{Old: fill(-1), Entropy: fill(1)}
	}
	t.prepared = time.Since(started)
}

// Load implements trainer.Backend.
func (t *wireTrainer) Load(_ context.Context, batch trainer.Batch) error {
	t.batch = batch
	return t.frames(func(group, trace int, f *frame) {
		s := batch.Groups[group].Traces[trace]
		f.ints = append(f.ints, s.Tokens...)
		f.floats = append(f.floats, s.RolloutLogprobs...)
	})
}

// Score implements trainer.Backend.
func (t *wireTrainer) Score(context.Context, int, trainer.ScoreOptions) (trainer.Scores, error) {
	return t.scores, nil
}

// Step implements trainer.Backend.
func (t *wireTrainer) Step(_ context.Context, step int, a trainer.Advantages) (trainer.Report, error) {
	err := t.frames(func(group, trace int, f *frame) {
		row := a.Values[group][trace]
		for i := range t.batch.Groups[group].Traces[trace].Tokens {
			f.floats = append(f.floats, row[min(i, len(row)-1)])
		}
	})
	return trainer.Report{Step: step}, err
}

// frame is what one rank is sent.
type frame struct {
	ints   []int32
	floats []float32
}

func (t *wireTrainer) frames(add func(group, trace int, f *frame)) error {
	frames := make([]frame, t.batch.Plan.Ranks)
	for _, p := range t.batch.Plan.Parts {
		f := &frames[p.Rank]
		for trace := p.From; trace < p.To; trace++ {
			add(p.Group, trace, f)
		}
	}
	for _, f := range frames {
		file := safetensors.File{Tensors: map[string]safetensors.Tensor{}}
		if f.ints != nil {
			file.Tensors["tokens"] = safetensors.FromInt32(f.ints, len(f.ints))
		}
		if f.floats != nil {
			file.Tensors["values"] = safetensors.FromFloat32(f.floats, len(f.floats))
		}
		data, err := safetensors.Encode(file)
		if err != nil {
			return err
		}
		t.bytes += len(data)
	}
	return nil
}

// peakRSS is the largest resident memory of this process so far, bytes.
func peakRSS(b *testing.B) int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Logf("peak memory is not measured here: %v", err)
		return 0
	}
	for text := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(text, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	return 0
}
