package remote

import (
	"fmt"
	"math"
	"slices"
)

// LoRA says what adapters are trained: y = W x + Alpha / Rank * B (A x) at some
// projections of the language model, without dropout. All weights are frozen; a
// checkpoint's policy has them merged.
type LoRA struct {
	// Rank of the adapters. Required.
	Rank int
	// Alpha over Rank scales them. Default twice the rank.
	Alpha float64
	// Targets are the projections. Default all: q_proj, k_proj, v_proj, o_proj,
	// gate_proj, up_proj, down_proj.
	Targets []string
}

func (l LoRA) prepare() (LoRA, error) {
	if l.Alpha == 0 {
		l.Alpha = 2 * float64(l.Rank)
	}
	if len(l.Targets) == 0 {
		l.Targets = []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
	}
	l.Targets = slices.Clone(l.Targets)
	if l.Rank < 1 || !(l.Alpha > 0) || math.IsInf(l.Alpha, 0) {
		return l, fmt.Errorf("LoRA has rank %d and alpha %v, want both above 0", l.Rank, l.Alpha)
	}
	return l, nil
}

// loraMessage is what a stage's adapters are, on the wire; rank 0 is none.
type loraMessage struct {
	Rank    int      `json:"rank"`
	Alpha   float64  `json:"alpha"`
	Targets []string `json:"targets"`
	Seed    int64    `json:"seed"` // of A; B begins at 0
}

func (l *LoRA) message(seed int64) loraMessage {
	if l == nil {
		return loraMessage{Targets: []string{}}
	}
	return loraMessage{Rank: l.Rank, Alpha: l.Alpha, Targets: l.Targets, Seed: seed}
}
