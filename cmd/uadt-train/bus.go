package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/bus"
)

// coordinatorLease is the key that only one coordinator of a run can hold.
const coordinatorLease = "coordinator"

// blobKey is where workers and trainers find the image store of a run.
const blobKey = "blob"

// blobAddress is the value of blobKey.
type blobAddress struct {
	Version     int    `json:"version"`
	Incarnation uint64 `json:"incarnation"` // of the coordinator whose store it is
	URL         string `json:"url"`
	Token       string `json:"token"`
}

// openedBus is a connection as coordinator that holds the run's lease.
type openedBus struct {
	server      *bus.Server // nil when the bus is elsewhere
	conn        *bus.Conn
	incarnation uint64
	lost        <-chan struct{}
}

// openBus starts or reaches the bus and takes the coordinator's lease, whose
// incarnation exceeds above.
func openBus(ctx context.Context, c configs.Config, dir string, above uint64, undo *closers) (openedBus, error) {
	var o openedBus
	if c.Bus.URL == "" {
		listen := c.Bus.Listen
		if listen == "" && c.Trainer.Backend == backendPyTorch {
			listen = "127.0.0.1:0" // the trainer is another process
		}
		server, err := bus.Start(bus.ServerOptions{Dir: filepath.Join(dir, "bus"), Listen: listen, Run: c.Name, Ranks: c.Trainer.Ranks})
		if err != nil {
			return o, err
		}
		undo.addVoid(server.Close)
		conn, err := server.Connect(ctx, "coordinator", "")
		if err != nil {
			return o, err
		}
		o.server, o.conn = server, conn
	} else {
		seed, err := readSeed(c.Bus.Credentials)
		if err != nil {
			return o, err
		}
		conn, err := bus.Dial(ctx, bus.DialOptions{URL: c.Bus.URL, Name: "coordinator", Seed: seed})
		if err != nil {
			return o, &unreachableError{"the bus at " + c.Bus.URL + " (bus.url)", err}
		}
		o.conn = conn
	}
	undo.addVoid(o.conn.Close)
	if err := o.conn.Setup(ctx, c.Name, bus.Limits{}); err != nil {
		return o, err
	}
	// A bus in this process can be reached by nobody who might want the lease, and
	// a busy laptop may stall for seconds; elsewhere a dead holder must be noticed.
	ttl := 15 * time.Second
	if o.server != nil {
		ttl = 10 * time.Minute
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	lease, err := o.conn.Values(c.Name).Acquire(ctx, bus.LeaseOptions{
		Key: coordinatorLease, Holder: fmt.Sprintf("%s process %d", host, os.Getpid()), TakeOver: o.server != nil, Above: above, TTL: ttl,
	})
	if err != nil {
		return o, err
	}
	undo.add(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return lease.Release(ctx)
	})
	o.incarnation, o.lost = lease.Incarnation(), lease.Lost()
	return o, nil
}

// readSeed reads an nkey seed from a file; "" for no file.
func readSeed(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("bus.credentials: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// serveBlobs starts the image server of a run and tells the bus where it is. It
// fails with bus.ErrSuperseded when a higher incarnation serves it already.
func serveBlobs(ctx context.Context, store *blob.Store, on openedBus, run string, undo *closers) (blobAddress, error) {
	token, err := blob.NewToken()
	if err != nil {
		return blobAddress{}, err
	}
	server, err := blob.Serve(blob.ServerOptions{Store: store, Token: token})
	if err != nil {
		return blobAddress{}, err
	}
	undo.add(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return server.Close(ctx)
	})
	address := blobAddress{Version: 1, Incarnation: on.incarnation, URL: server.URL(), Token: token}
	data, err := json.Marshal(address)
	if err != nil {
		return blobAddress{}, fmt.Errorf("blob address: %w", err)
	}
	if _, err := on.conn.Values(run).Announce(ctx, blobKey, data); err != nil {
		return blobAddress{}, err
	}
	return address, nil
}

// findBlobs reads where the image server of a run is.
func findBlobs(ctx context.Context, values *bus.Values) (blobAddress, error) {
	value, err := values.Get(ctx, blobKey)
	if errors.Is(err, bus.ErrNotFound) {
		return blobAddress{}, &unreachableError{"the run's image store", err}
	}
	if err != nil {
		return blobAddress{}, err
	}
	var address blobAddress
	if err := json.Unmarshal(value.Data, &address); err != nil {
		return blobAddress{}, fmt.Errorf("blob address on the bus: %w", err)
	}
	return address, nil
}
