package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout/remote"
	"github.com/uadt-train/uadt-train/rollout/vllm"
)

// closeTimeout bounds every orderly end.
const closeTimeout = 10 * time.Second

// images gives image bytes to the inference client from the run's store.
type images struct{ client *blob.Client }

// Image implements vllm.Images.
func (i images) Image(ctx context.Context, digest string) (data []byte, mediaType string, err error) {
	data, err = i.client.Get(ctx, digest)
	if err != nil {
		return nil, "", err
	}
	return data, detectType(data), nil
}

// Get implements the image seam of trainers and encoders.
func (i images) Get(ctx context.Context, digest string) ([]byte, error) {
	return i.client.Get(ctx, digest)
}

func openImages(address blobAddress, undo *closers) (images, error) {
	client, err := blob.NewClient(blob.ClientOptions{URL: address.URL, Token: address.Token})
	if err != nil {
		return images{}, err
	}
	undo.addVoid(client.Close)
	return images{client}, nil
}

// workerSetup is what a worker process or goroutine is made from.
type workerSetup struct {
	config  configs.Config
	conn    *bus.Conn
	images  images
	servers []string
	id      string
	log     *slog.Logger
	// embedded says that the bus lives in this process: see openBus.
	embedded bool
}

// hangAfter is how long a server with jobs may show no progress: more than
// compiling kernels takes at its first request.
const hangAfter = time.Minute

// newWorker builds the inference fleet over servers and the worker around it.
func newWorker(s workerSetup, undo *closers) (*remote.Worker, error) {
	fleet, err := vllm.NewFleet(vllm.Options{
		Servers: s.servers, Images: s.images, Concurrency: s.config.Rollout.Concurrency,
		MaxPixels: s.config.Model.MaxPixels, HangAfter: hangAfter, Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	undo.add(fleet.Close)
	ttl := time.Duration(0) // the worker's default
	if s.embedded {
		ttl = time.Minute // this process alone may stall, and nobody else waits
	}
	return remote.NewWorker(remote.WorkerOptions{
		TakeOver: s.embedded, Conn: s.conn, Run: s.config.Name, ID: s.id, Fleet: fleet, Servers: s.servers,
		Slots: s.config.Rollout.Concurrency * len(s.servers), LeaseTTL: ttl, Log: s.log,
		// The fleet first tries its own other servers; then another worker does.
		Stall: min(3*hangAfter, s.config.Rollout.Timeout),
	})
}

// runWorker runs worker until its contexts end, and reports how it ended.
func runWorker(ctx context.Context, worker *remote.Worker, undo *closers) <-chan error {
	soft, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- worker.Run(soft, ctx)
	}()
	undo.add(func() error {
		stop()
		select {
		case <-done:
			return nil
		case <-time.After(closeTimeout):
			return fmt.Errorf("worker did not stop within %s", closeTimeout)
		}
	})
	return ended
}

// workerID names this process among the workers of a run.
func workerID(n int) string {
	host, err := os.Hostname()
	if err != nil || bus.CheckName(host) != nil {
		host = "host"
	}
	return fmt.Sprintf("%s-%d-%d", host, os.Getpid(), n)
}

// workerFailed says what a worker that ended by itself means for the run.
func workerFailed(err error) error {
	switch {
	case err == nil:
		return errors.New("rollout worker ended before the run did")
	case errors.Is(err, bus.ErrHeld):
		return &unreachableError{"a server that another worker controls", err}
	}
	return fmt.Errorf("rollout worker: %w", err)
}
