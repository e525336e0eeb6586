package experiments_test

import (
	"github.com/uadt-train/uadt-train/experiments"
	"github.com/uadt-train/uadt-train/internal/coordinator"
)

// The coordinator knows a run directory by these two interfaces alone.
var (
	_ coordinator.Store       = (*experiments.Run)(nil)
	_ coordinator.Checkpoints = (*experiments.Run)(nil)
)
