package remote

import (
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/trainer"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kit is a bus and a connection to it as coordinator.
type kit struct {
	run    string
	server *bus.Server
	conn   *bus.Conn
}

// newBus starts a bus that other processes can reach.
func newBus(t *testing.T, run string) *kit {
	t.Helper()
	k := &kit{run: run}
	var err error
	k.server, err = bus.Start(bus.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Run: run})
	must(t, err)
	t.Cleanup(k.server.Close)
	k.conn, err = k.server.Connect(t.Context(), "coordinator", "")
	must(t, err)
	t.Cleanup(k.conn.Close)
	must(t, k.conn.Setup(t.Context(), run, bus.Limits{}))
	return k
}

// ones is an advantage of 1 for every trace, -1 for every other.
func ones(groups []trainer.Group) [][][]float32 {
	out := make([][][]float32, len(groups))
	for q, g := range groups {
		for i := range g.Traces {
			out[q] = append(out[q], []float32{1 - 2*float32(i%2)})
		}
	}
	return out
}
