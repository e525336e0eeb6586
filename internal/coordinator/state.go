package coordinator

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// stateVersion changes when the meaning of a field of State does.
const stateVersion = 1

// Counts are the books of admission, in groups since the start of the run:
// Admitted = Trained + Dropped + InFlight, always.
type Counts struct {
	Admitted int `json:"admitted"`
	Trained  int `json:"trained"`
	Dropped  int `json:"dropped"`
	InFlight int `json:"in_flight"`
}

// Closed says whether the books close.
func (c Counts) Closed() bool { return c.Admitted == c.Trained+c.Dropped+c.InFlight }

// State is the coordinator's part of a checkpoint: everything beside weights
// and optimizer that influences the next step. It survives JSON to the bit.
type State struct {
	Version   int    `json:"version"`
	Seed      int64  `json:"seed"`
	Step      int    `json:"step"`       // global step it stands at
	Stage     string `json:"stage"`      // name
	StageStep int    `json:"stage_step"` // steps of the stage done
	Update    int    `json:"update"`     // optimizer updates done in the run
	BadSteps  int    `json:"bad_steps"`  // updates refused in a row
	// Cursor is the source's position after the last batch that is durable
	// because of this checkpoint: StageStep + max_staleness, or the stage's last.
	Cursor  []byte `json:"cursor"`
	Refills int    `json:"refills"` // questions drawn in place of dropped ones, this stage
	// Shaper is the state after StageStep; nil outside RL stages.
	Shaper *uadt.State `json:"shaper,omitempty"`
	// Policy is the version that StageStep made (zero outside RL stages); its
	// incarnation is that of the coordinator that wrote the checkpoint.
	Policy rollout.Policy `json:"policy"`
	Saved  trainer.Saved  `json:"saved"`
	// Reference is what the stage started from: what KL is measured against and
	// adapters are added to. With ReferenceHere its path is relative to the folder
	// of the checkpoints, so that a run may be moved.
	Reference     *trainer.Reference `json:"reference,omitempty"`
	ReferenceHere bool               `json:"reference_here,omitempty"`
	// Ahead is the last batch that this checkpoint knows to be durable, and
	// Durable lists the groups of those after StageStep: admitted, not trained.
	Ahead   int             `json:"ahead"`
	Durable []rollout.JobID `json:"durable,omitempty"`
	Counts  Counts          `json:"counts"`
}

// DecodeState reads the state of a checkpoint strictly.
func DecodeState(data []byte) (State, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var s State
	if err := decoder.Decode(&s); err != nil {
		return State{}, fmt.Errorf("checkpoint state: %w", err)
	}
	if s.Version != stateVersion {
		return State{}, fmt.Errorf("checkpoint state: version %d, want %d", s.Version, stateVersion)
	}
	return s, nil
}
