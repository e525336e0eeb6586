package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/trainer/graph"
	"github.com/uadt-train/uadt-train/trainer/remote"
)

// backendPyTorch is the value of trainer.backend that drives PyTorch processes.
const backendPyTorch = "pytorch"

// pytorchFolder holds the Python package in a checkout of this repository.
const pytorchFolder = "trainer/pytorch"

// openTrainer opens the trainer that the recipe names.
func (r *running) openTrainer(ctx context.Context, a assembly) (trainer.Backend, trainer.Keeper, error) {
	work := filepath.Join(r.run.Dir(), "trainer")
	if r.config.Trainer.Backend != backendPyTorch {
		backend, err := graph.New(graph.Options{WorkDir: work, Images: a.images, MaxPixels: r.config.Model.MaxPixels})
		if err != nil {
			return nil, nil, err
		}
		r.undo.add(backend.Close)
		return backend, backend, nil
	}
	options := remote.Options{
		Conn: a.bus.conn, Scope: bus.Scope{Run: r.config.Name, Incarnation: a.bus.incarnation},
		Ranks: r.config.Trainer.Ranks, MaxPixels: r.config.Model.MaxPixels, Command: r.config.Trainer.Timeout, Log: r.log,
		Weights: rollout.Transport(r.config.Trainer.Weights),
	}
	if t := r.config.Trainer; t.LoRARank > 0 {
		options.LoRA = &remote.LoRA{Rank: t.LoRARank, Alpha: t.LoRAAlpha, Targets: t.LoRATargets}
	}
	if r.config.Trainer.Launch == "local" {
		launch := &remote.Launch{
			Python: r.config.Trainer.Python, Bus: r.config.Bus.URL, Work: work, Logs: filepath.Join(r.run.Dir(), "logs"),
			Credentials: r.config.Bus.Credentials, Sharding: r.config.Trainer.Sharding,
		}
		if a.bus.server != nil {
			launch.Bus = a.bus.server.URL()
		}
		launch.Package = pytorchPackage()
		options.Launch = launch
	}
	backend, err := remote.New(ctx, options)
	if err != nil {
		return nil, nil, &unreachableError{"the trainer (trainer.backend: pytorch)", err}
	}
	r.undo.add(backend.Close)
	return backend, backend, nil
}

// pytorchPackage is the trainer's package in a checkout; "" elsewhere, where it
// must be installed.
func pytorchPackage() string {
	folder, err := filepath.Abs(pytorchFolder)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(folder); err != nil {
		return ""
	}
	return folder
}
