package coordinator

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

// metaVersion changes when the meaning of a field of batchMeta does.
const metaVersion = 1

// rolloutBatch is one sampled batch: what a step trains.
type rolloutBatch struct {
	step     int // n of the stage, from 1
	version  int // of the policy that sampled it
	groups   []scored
	drops    []drop
	admitted int
	refills  int
	cursor   []byte // of the source, after the batch
	recorded bool   // read back, not sampled
	timing   batchTiming
}

// batchTiming is never compared.
type batchTiming struct {
	rollout, reward, store time.Duration
}

// scored is a group with its scores.
type scored struct {
	Job    rollout.Job    `json:"job"`
	Scores []reward.Score `json:"scores"` // [G]
	group  rollout.Group
}

// drop is a group that was admitted and will not be trained.
type drop struct {
	Job    rollout.JobID  `json:"job"`
	Reason rollout.Reason `json:"reason"`
	Error  string         `json:"error,omitempty"`
}

// batchMeta is the document that stands beside the groups of a durable batch.
type batchMeta struct {
	Version  int      `json:"version"`
	Seed     int64    `json:"seed"`
	Stage    string   `json:"stage"`
	Step     int      `json:"step"`   // of the stage
	Policy   int      `json:"policy"` // version
	Groups   []scored `json:"groups"`
	Drops    []drop   `json:"drops,omitempty"`
	Admitted int      `json:"admitted"`
	Refills  int      `json:"refills"`
	Cursor   []byte   `json:"cursor"`
}

// encode returns the durable form of b.
func (b *rolloutBatch) encode(seed int64, stage string) ([]byte, []rollout.Group, error) {
	meta, err := json.Marshal(batchMeta{
		Version: metaVersion, Seed: seed, Stage: stage, Step: b.step, Policy: b.version, Groups: b.groups,
		Drops: b.drops, Admitted: b.admitted, Refills: b.refills, Cursor: b.cursor,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("rollout batch of step %d: %w", b.step, err)
	}
	groups := make([]rollout.Group, len(b.groups))
	for i, g := range b.groups {
		groups[i] = g.group
	}
	return meta, groups, nil
}

// want is what a recorded batch must be to be trained.
type want struct {
	seed    int64
	stage   string
	step    int // of the stage
	version int
}

// decodeBatch reads a durable batch and checks that it is the one wanted.
func decodeBatch(meta []byte, groups []rollout.Group, w want) (*rolloutBatch, error) {
	var m batchMeta
	if err := json.Unmarshal(meta, &m); err != nil {
		return nil, fmt.Errorf("recorded rollout batch: %w", err)
	}
	got := want{seed: m.Seed, stage: m.Stage, step: m.Step, version: m.Policy}
	if w.version <= got.version && got.version < w.step {
		w.version = got.version // younger than it had to be: the stage was given more steps
	}
	if m.Version != metaVersion || got != w {
		return nil, fmt.Errorf("recorded rollout batch is version %d of %+v, want version %d of %+v", m.Version, got, metaVersion, w)
	}
	if len(groups) != len(m.Groups) {
		return nil, fmt.Errorf("recorded rollout batch has %d groups, its document names %d", len(groups), len(m.Groups))
	}
	b := &rolloutBatch{
		step: m.Step, version: m.Policy, groups: m.Groups, drops: m.Drops,
		admitted: m.Admitted, refills: m.Refills, cursor: m.Cursor, recorded: true,
	}
	for i := range b.groups {
		g := &b.groups[i]
		g.group = groups[i]
		if g.group.Job != g.Job.ID || len(g.Scores) != len(g.group.Traces) {
			return nil, fmt.Errorf("recorded group %d is job %s with %d traces, its document says %s with %d",
				i, g.group.Job, len(g.group.Traces), g.Job.ID, len(g.Scores))
		}
	}
	return b, nil
}

// jobs lists every job of b, dropped ones included.
func (b *rolloutBatch) jobs() []rollout.JobID {
	ids := b.trainable()
	for _, d := range b.drops {
		ids = append(ids, d.Job)
	}
	return ids
}

// reasons counts the dropped groups of b by reason.
func (b *rolloutBatch) reasons() map[string]int {
	counts := map[string]int{}
	for _, d := range b.drops {
		counts[string(d.Reason)]++
	}
	return counts
}

// trainable lists the jobs of b that were not dropped.
func (b *rolloutBatch) trainable() []rollout.JobID {
	ids := make([]rollout.JobID, 0, len(b.groups)+len(b.drops))
	for _, g := range b.groups {
		ids = append(ids, g.Job.ID)
	}
	return ids
}
