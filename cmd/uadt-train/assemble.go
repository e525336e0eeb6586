package main

import (
	"context"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/coordinator"
	"github.com/uadt-train/uadt-train/internal/encode"
	"github.com/uadt-train/uadt-train/internal/serve"
	"github.com/uadt-train/uadt-train/internal/telemetry"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/reward/judge"
	"github.com/uadt-train/uadt-train/rollout/remote"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// assembly is what the parts of a ring are made from.
type assembly struct {
	bus     openedBus
	store   *blob.Store
	images  images
	resumed bool
}

// assemble opens every part of the ring. failed delivers the end of a worker
// that ends by itself.
func (r *running) assemble(ctx context.Context, a assembly) (o coordinator.Options, failed <-chan error, err error) {
	model, err := readFamily(r.config.Model.Path)
	if err != nil {
		return o, nil, err
	}
	// Image and video pads may never be sampled: every engine that reads the text
	// again would take them for images.
	o = ringOptions(r.config, model.pads)
	o.Run, o.Incarnation, o.ModelDigest = r.config.Name, a.bus.incarnation, r.modelDigest
	o.Parts.Store, o.Parts.Checkpoints = r.run, r.run
	o.Parts.Logger, o.Parts.Now = r.log, r.m.Now
	budget, ranks := r.config.Trainer.TokenBudget, r.config.Trainer.Ranks
	o.Parts.Plan = func(groups []trainer.Group) (trainer.Plan, error) { return trainer.NewPlan(groups, ranks, budget) }
	if err := r.openData(ctx, a.store, &o); err != nil {
		return o, nil, err
	}
	if o.Parts.Backend, o.Parts.Keeper, err = r.openTrainer(ctx, a); err != nil {
		return o, nil, err
	}
	if o.Parts.Encoder, err = r.openEncoder(model, o.Parts.Backend, a); err != nil {
		return o, nil, err
	}
	if r.config.UADT.Span == uadt.SpanThink {
		words, err := tokenizer.Open(r.config.Model.Path)
		if err != nil {
			return o, nil, err
		}
		o.RL.Think = thinkSpan(words)
	}
	if o.Parts.Scorer, err = r.openScorer(); err != nil {
		return o, nil, err
	}
	if o.Parts.Sink, err = r.openSinks(a.bus.incarnation); err != nil {
		return o, nil, err
	}
	if !hasKind(r.config, trainer.RL) {
		return o, nil, nil
	}
	if !a.resumed {
		if err := r.measureBase(ctx, o); err != nil {
			return o, nil, err
		}
	}
	failed, err = r.openFleet(ctx, a, &o)
	if encoder, ok := o.Parts.Encoder.(promptEncoder); ok && err == nil {
		o.Parts.Fleet = samePrompts{o.Parts.Fleet, encoder}
	}
	return o, failed, err
}

// openEncoder tokenises here what this program can, and in the trainer's process,
// through the model's own processor, what it cannot.
func (r *running) openEncoder(model family, backend trainer.Backend, a assembly) (trainer.Encoder, error) {
	if encoder, ok := backend.(trainer.Encoder); ok && model.kind != nativeFamily {
		return encoder, nil
	}
	return encode.Open(r.config.Model.Path, r.config.Model.MaxPixels, a.images)
}

func (r *running) openScorer() (reward.Scorer, error) {
	o := r.config.Scoring()
	if r.config.Reward.JudgeURL != "" {
		j, err := judge.New(judge.Options{URL: r.config.Reward.JudgeURL, Model: r.config.Reward.JudgeModel})
		if err != nil {
			return nil, err
		}
		o.Judge = j.Part
	}
	return reward.New(o)
}

func (r *running) openSinks(incarnation uint64) (telemetry.Sink, error) {
	board, err := telemetry.NewTensorBoard(filepath.Join(r.run.Dir(), "tb"), incarnation, r.started, r.log)
	if err != nil {
		return nil, err
	}
	r.undo.add(board.Close)
	var sinks []telemetry.Sink
	if r.m.Terminal {
		// Before the log: the bars of a run that ended must be gone when it says so.
		bars := telemetry.NewProgress(r.m.Stderr, r.m.Now)
		r.undo.addVoid(bars.Close)
		r.screen.to(bars)
		sinks = append(sinks, bars)
	}
	sinks = append(sinks, telemetry.NewLog(r.log, !r.m.Terminal), board)
	if address := r.config.Log.Prometheus; address != "" {
		exporter := telemetry.NewPrometheus(r.config.Name)
		if err := serveMetrics(address, exporter.Handler(), r.undo); err != nil {
			return nil, err
		}
		sinks = append(sinks, exporter)
	}
	return telemetry.Tee(sinks...), nil
}

// openFleet makes the fleet over the bus, and the worker and server of a run
// that has none elsewhere.
func (r *running) openFleet(ctx context.Context, a assembly, o *coordinator.Options) (<-chan error, error) {
	fleet, err := remote.NewFleet(ctx, remote.FleetOptions{
		Conn: a.bus.conn, Scope: bus.Scope{Run: r.config.Name, Incarnation: a.bus.incarnation},
		AdoptTimeout: r.config.Rollout.Timeout, Log: r.log,
	})
	if err != nil {
		return nil, err
	}
	r.undo.addVoid(fleet.Close)
	o.Parts.Fleet = fleet
	if r.config.Rollout.Workers == 0 {
		return nil, nil
	}
	servers, log := r.config.Rollout.Servers, r.log
	if len(servers) == 0 {
		log = quiet(r.log)
		url, err := r.startServer(ctx, r.config.Model.Path, r.undo)
		if err != nil {
			return nil, err
		}
		servers = []string{url}
	}
	worker, err := newWorker(workerSetup{
		config: r.config, embedded: a.bus.server != nil, conn: a.bus.conn, images: a.images, servers: servers, id: workerID(0), log: log,
	}, r.undo)
	if err != nil {
		return nil, err
	}
	return runWorker(ctx, worker, r.undo), nil
}

// maxLogprobs is the cap of the embedded server: enough for the estimators
// topk1 to topk31, which ask for one more than k.
const maxLogprobs = 32

// startServer serves dir with the native engine on a free loopback port.
func (r *running) startServer(ctx context.Context, dir string, undo *closers) (string, error) {
	server, err := serve.New(serve.Options{Dir: dir, MaxPixels: r.config.Model.MaxPixels, MaxImages: r.config.Data.MaxImages, MaxLogprobs: maxLogprobs, Log: quiet(r.log)})
	if err != nil {
		return "", err
	}
	return listenAndServe(ctx, server, "127.0.0.1:0", undo)
}

// listenAndServe runs server until undo.
func listenAndServe(ctx context.Context, server *serve.Server, address string, undo *closers) (string, error) {
	undo.add(server.Close)
	if err := server.Listen(address); err != nil {
		return "", err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx) }()
	undo.add(func() error {
		stop()
		return <-ended
	})
	return server.URL(), nil
}
