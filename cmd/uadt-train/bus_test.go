package main

import (
	"errors"
	"testing"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/bus"
)

// TestOlderCoordinatorCannotMoveTheImages: workers and trainers that start now
// find the store of the newest coordinator, whoever wrote last.
func TestOlderCoordinatorCannotMoveTheImages(t *testing.T) {
	undo := &closers{}
	defer func() {
		if err := undo.close(); err != nil {
			t.Error(err)
		}
	}()
	server, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Run: "r"})
	if err != nil {
		t.Fatal(err)
	}
	undo.addVoid(server.Close)
	conn, err := server.Connect(t.Context(), "coordinator", "")
	if err != nil {
		t.Fatal(err)
	}
	undo.addVoid(conn.Close)
	if err := conn.Setup(t.Context(), "r", bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	store, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	serve := func(incarnation uint64) (blobAddress, error) {
		return serveBlobs(t.Context(), store, openedBus{conn: conn, incarnation: incarnation}, "r", undo)
	}
	if _, err := serve(1); err != nil {
		t.Fatal(err)
	}
	newest, err := serve(2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := serve(1); !errors.Is(err, bus.ErrSuperseded) {
		t.Errorf("got %v, want ErrSuperseded", err)
	}
	if found, err := findBlobs(t.Context(), conn.Values("r")); err != nil || found != newest {
		t.Errorf("found %+v (%v), want %+v", found, err, newest)
	}
}
