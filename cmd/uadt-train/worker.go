package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/bus"
)

// workerFlags are those of the worker command.
type workerFlags struct {
	config  configFlags
	url     string
	run     string
	servers []string
}

// workerCommand serves the jobs of a run from another process or host.
func (m *Main) workerCommand(w *watch) *cobra.Command {
	var f workerFlags
	cmd := &cobra.Command{
		Use: "worker --bus URL --run NAME --servers URL,...", Short: "sample the traces of a run with inference servers", Args: cobra.NoArgs,
		Long: `worker takes jobs of a run from the bus, has inference servers answer them, and
brings new weights to those servers. Start as many as there are hosts with
servers; a server belongs to one worker at a time. The first Ctrl-C finishes the
jobs in hand, the second gives them back at once.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.worker(cmd.Context(), w.admit, f) },
	}
	f.config.bind(cmd)
	cmd.Flags().StringVar(&f.url, "bus", "", "NATS server of the run (default bus.url)")
	cmd.Flags().StringVar(&f.run, "run", "", "name of the run (default name)")
	cmd.Flags().StringSliceVar(&f.servers, "servers", nil, "base URLs of vLLM servers (default rollout.servers)")
	return cmd
}

// resolve merges the recipe, if there is one, with the flags.
func (f workerFlags) resolve(m *Main) (configs.Config, error) {
	c := configs.Defaults()
	if f.config.file != "" {
		loaded, err := f.config.load(m)
		if err != nil {
			return c, err
		}
		c = loaded.Config
	} else if len(f.config.set) > 0 {
		return c, usagef("worker: --set needs --config")
	}
	if err := configs.CheckServers(f.servers); err != nil {
		return c, usagef("worker: --servers: %w", err)
	}
	if f.url != "" {
		if err := configs.CheckBus(f.url); err != nil {
			return c, usagef("worker: --bus: %w", err)
		}
		c.Bus.URL = f.url
	}
	if f.run != "" {
		c.Name = f.run
	}
	if len(f.servers) > 0 {
		c.Rollout.Servers = f.servers
	}
	if c.Bus.URL == "" || len(c.Rollout.Servers) == 0 {
		return c, usagef("worker: needs a bus (--bus or bus.url) and servers (--servers or rollout.servers)")
	}
	return c, nil
}

func (m *Main) worker(ctx, soft context.Context, f workerFlags) (err error) {
	c, err := f.resolve(m)
	if err != nil {
		return err
	}
	log := m.logger(c.Log.Level, c.Log.Format)
	var undo closers
	defer func() { err = errors.Join(err, undo.close()) }()
	seed, err := readSeed(c.Bus.Credentials)
	if err != nil {
		return err
	}
	conn, err := bus.Dial(ctx, bus.DialOptions{URL: c.Bus.URL, Name: workerID(0), Seed: seed})
	if err != nil {
		return &unreachableError{"the bus at " + c.Bus.URL, err}
	}
	undo.addVoid(conn.Close)
	address, err := findBlobs(ctx, conn.Values(c.Name))
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Name, err)
	}
	pictures, err := openImages(address, &undo)
	if err != nil {
		return err
	}
	worker, err := newWorker(workerSetup{config: c, conn: conn, images: pictures, servers: c.Rollout.Servers, id: workerID(0), log: log}, &undo)
	if err != nil {
		return err
	}
	log.Info("worker started", "run", c.Name, "servers", c.Rollout.Servers)
	return worker.Run(soft, ctx)
}
