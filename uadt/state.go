package uadt

// stateVersion changes when the meaning of a field of State does.
const stateVersion = 1

// State is everything of a shaper that influences the next batch. It survives
// JSON to the bit and is part of the checkpoint.
type State struct {
	Version int     `json:"version"`
	Step    int     `json:"step"` // s of the next batch
	Tau     float64 `json:"tau"`  // nats
	Sigma   float64 `json:"sigma"`
	Seeded  bool    `json:"seeded"` // false until a batch with a counted trace was shaped
	// Estimator is that of the entropies in Tau; mixing two in one run is refused.
	Estimator Estimator `json:"estimator"`
	// Controllers holds the state of rules that adapt, by name; none do so far.
	Controllers map[string]float64 `json:"controllers,omitempty"`
}
