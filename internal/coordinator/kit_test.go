package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/trainertest"
	"github.com/uadt-train/uadt-train/uadt"
)

// kit is a whole ring on scripted parts, whose run directory is real.
type kit struct {
	dir     string
	options Options
	fleet   *rollouttest.Scripted
	trainer *trainertest.Scripted
	store   *dirStore
	events  *recorder
}

// newKit makes a ring over dir. The same dir is one run: a second kit on it
// resumes what the first left. change may alter options and scripts first.
func newKit(dir string, incarnation uint64, change func(k *kit, script *trainertest.Script)) (*kit, error) {
	k := &kit{dir: dir, store: &dirStore{dir: dir}, events: &recorder{}}
	script := trainertest.Script{Root: filepath.Join(dir, "published")}
	k.fleet = rollouttest.NewScripted(rollouttest.Script{})
	k.options = Options{
		Run: "test", Incarnation: incarnation, Seed: 7, CheckpointEvery: 2,
		ModelDigest: trainertest.InitialDigest(),
		Stages: []Stage{{
			Name: "rl", Kind: trainer.RL, Steps: 6, Batch: 4, LearningRate: 0.01, Warmup: 1, Decay: trainer.DecayCosine,
			Source: &listSource{records: 10},
		}},
		RL: RL{
			Sampling:  rollout.Sampling{Traces: 4, Temperature: 1, TopP: 1, MaxTokens: 120},
			MaxRefill: 2, Concurrency: 3,
			Advantage: uadt.DefaultAdvantageOptions(), UADT: uadt.DefaultOptions(),
			Loss: trainer.StepOptions{Loss: trainer.PPO, ClipLow: 0.2, ClipHigh: 0.2, Aggregation: trainer.TokenMean},
		},
	}
	point, err := k.store.latest()
	if err != nil {
		return nil, err
	}
	k.options.Resume = point
	scorer, err := reward.New(reward.DefaultOptions())
	if err != nil {
		return nil, err
	}
	k.options.Parts = Parts{Scorer: scorer, Store: k.store, Checkpoints: k.store, Sink: k.events}
	if change != nil {
		change(k, &script)
	}
	k.trainer = trainertest.NewScripted(script)
	p := &k.options.Parts
	if p.Fleet == nil {
		p.Fleet = k.fleet
	}
	if p.Backend == nil {
		p.Backend = k.trainer
	}
	p.Keeper, p.Encoder = k.trainer, k.trainer
	return k, nil
}

// mustKit is newKit in a test.
func mustKit(t *testing.T, dir string, incarnation uint64, change func(k *kit, script *trainertest.Script)) *kit {
	t.Helper()
	k, err := newKit(dir, incarnation, change)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run executes the ring to its end.
func (k *kit) run(ctx, admit context.Context) (Result, error) {
	c, err := New(k.options)
	if err != nil {
		return Result{}, err
	}
	return c.Run(ctx, admit)
}

// finish runs k to its end, which must be a good one.
func (k *kit) finish(t *testing.T) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rollouttest.Patience)
	defer cancel()
	r, err := k.run(ctx, ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// listSource draws questions 0, 1, 2, ... round and round.
type listSource struct {
	records, next int
}

func question(i int) rollout.Question {
	return rollout.Question{
		ID: fmt.Sprintf("q%d", i), Kind: rollout.SingleChoice, Level: rollout.Basic, Modality: "CFP", Split: "train",
		Text: fmt.Sprintf("Question %d? A. drusen B. haemorrhage C. exudate D. none", i), Gold: string(rune('A' + i%4)),
		Messages: []rollout.Message{{Role: "user", Parts: []rollout.Part{{Text: fmt.Sprintf("Question %d?", i)},
			{Image: &rollout.Image{Digest: fmt.Sprintf("%064x", i), MediaType: "image/png"}}}}},
		Response: fmt.Sprintf("<think>look</think><answer>%c</answer>", 'A'+i%4),
	}
}

func (s *listSource) Next(ctx context.Context) (rollout.Question, int, error) {
	i := s.next
	s.next++
	return question(i % s.records), i / s.records, ctx.Err()
}

func (s *listSource) State() ([]byte, error) { return json.Marshal(s.next) }

func (s *listSource) Restore(state []byte) error { return json.Unmarshal(state, &s.next) }

// recorder keeps events.
type recorder struct {
	mu   sync.Mutex
	all  []telemetry.Event
	hook func(telemetry.Event)
}

func (r *recorder) Emit(e telemetry.Event) {
	r.mu.Lock()
	r.all = append(r.all, e)
	hook := r.hook
	r.mu.Unlock()
	if hook != nil {
		hook(e)
	}
}

func eventsOf[T telemetry.Event](r *recorder) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []T
	for _, e := range r.all {
		if x, ok := e.(T); ok {
			found = append(found, x)
		}
	}
	return found
}

func (r *recorder) alarms(name string) int {
	n := 0
	for _, a := range eventsOf[telemetry.Alarm](r) {
		if a.Name == name {
			n++
		}
	}
	return n
}

// dirStore is a run directory in plain JSON; every file is renamed into place.
type dirStore struct {
	dir  string
	hook func() // called before and after every write; may kill the process
}

type storedRollout struct {
	Meta   []byte
	Groups []rollout.Group
}

func (s *dirStore) write(name string, value any) error {
	if s.hook != nil {
		s.hook()
		defer s.hook()
	}
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".part", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".part", path)
}

func (s *dirStore) PutRollout(_ context.Context, step int, meta []byte, groups []rollout.Group) error {
	return s.write(fmt.Sprintf("rollouts/%d.json", step), storedRollout{meta, groups})
}

func (s *dirStore) Rollout(_ context.Context, step int) ([]byte, []rollout.Group, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprintf("rollouts/%d.json", step)))
	if err != nil {
		return nil, nil, err
	}
	var r storedRollout
	err = json.Unmarshal(data, &r)
	return r.Meta, r.Groups, err
}

func (s *dirStore) PutLedger(_ context.Context, step int, rows []map[string]any, arrays map[string][]float32) error {
	return s.write(fmt.Sprintf("ledger/%d.json", step), map[string]any{"rows": rows, "arrays": arrays})
}

func (s *dirStore) PutMetrics(_ context.Context, kind string, step int, values map[string]any) error {
	return s.write(fmt.Sprintf("metrics/%s-%04d.json", kind, step), values)
}

func (s *dirStore) OpenCheckpoint(_ context.Context, step int) (string, error) {
	dir := filepath.Join(s.dir, fmt.Sprintf("checkpoints/step-%04d", step))
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

func (s *dirStore) SealCheckpoint(_ context.Context, step int, state []byte, pin bool) (string, error) {
	name := fmt.Sprintf("checkpoints/step-%04d", step)
	if err := s.write(name+"/state.json", json.RawMessage(state)); err != nil {
		return "", err
	}
	return filepath.Join(s.dir, name), s.write(name+"/manifest.json", map[string]bool{"pin": pin})
}

// latest finds the newest sealed checkpoint, nil when there is none.
func (s *dirStore) latest() (*Point, error) {
	found, err := filepath.Glob(filepath.Join(s.dir, "checkpoints/*/manifest.json"))
	if err != nil || len(found) == 0 {
		return nil, err
	}
	sort.Strings(found)
	dir := filepath.Dir(found[len(found)-1])
	state, err := os.ReadFile(filepath.Join(dir, "state.json"))
	return &Point{Dir: dir, State: state}, err
}

// timings are the parts of a line of metrics that no promise covers.
func timing(name string) bool {
	return name == "time" || strings.HasPrefix(name, "seconds/") || strings.HasPrefix(name, "memory/") ||
		strings.HasSuffix(name, "seconds") || strings.HasSuffix(name, "_per_second")
}

// lines reads the metrics of a run less timings, a text a line, by file name.
func (s *dirStore) lines() (map[string]string, error) {
	found, err := filepath.Glob(filepath.Join(s.dir, "metrics/*.json"))
	if err != nil {
		return nil, err
	}
	lines := map[string]string{}
	for _, path := range found {
		values, err := readLine(path)
		if err != nil {
			return nil, err
		}
		for name := range values {
			if timing(name) {
				delete(values, name)
			}
		}
		text, err := json.Marshal(values)
		if err != nil {
			return nil, err
		}
		lines[filepath.Base(path)] = string(text)
	}
	return lines, nil
}

func readLine(path string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	return values, json.Unmarshal(data, &values)
}

// ledgerRows reads the rows of a step, less what names an incarnation or a time.
func (s *dirStore) ledgerRows(step int) ([]map[string]any, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprintf("ledger/%d.json", step)))
	if err != nil {
		return nil, err
	}
	var l struct{ Rows []map[string]any }
	return l.Rows, json.Unmarshal(data, &l)
}

// sameRuns fails unless two runs ended alike: weights, and metrics less timings.
func sameRuns(t *testing.T, want, got Result, wantStore, gotStore *dirStore) {
	t.Helper()
	if want.Digest != got.Digest || want.Step != got.Step || want.Counts != got.Counts {
		t.Errorf("ended at step %d with digest %s, counts %+v, want step %d with %s, %+v",
			got.Step, got.Digest, got.Counts, want.Step, want.Digest, want.Counts)
	}
	a, err := wantStore.lines()
	if err != nil {
		t.Fatal(err)
	}
	b, err := gotStore.lines()
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != len(b) {
		t.Errorf("%d lines of metrics, want %d", len(b), len(a))
	}
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s differs\n got %s\nwant %s", name, b[name], a[name])
		}
	}
}

// patient is a context that ends long after any good test.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), rollouttest.Patience)
	t.Cleanup(cancel)
	return ctx
}
