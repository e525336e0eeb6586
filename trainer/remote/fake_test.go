package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// request is a command as a rank reads it.
type request struct {
	name    string
	body    json.RawMessage
	tensors map[string]safetensors.Tensor
}

// reply is what a rank makes of it; later is a second answer.
type reply struct {
	body    any
	tensors map[string]safetensors.Tensor
	err     *failure
	later   *reply
	none    bool // say nothing
}

// fakeRank is a rank of the protocol in this process.
type fakeRank struct {
	rank, world int
	handle      func(request) reply
	end         func() // stops its heartbeats and its answers

	mu       sync.Mutex
	instance string
	seen     []string // names of commands, in order
}

// startRank serves the mailbox of a rank until its end or that of the test.
func startRank(t *testing.T, k *kit, r *fakeRank) *fakeRank {
	t.Helper()
	conn, err := k.server.Connect(t.Context(), fmt.Sprintf("rank %d", r.rank), "")
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	r.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		conn.Close()
	})
	t.Cleanup(r.end)
	running.Go(func() { r.beat(ctx, t, k, conn) })
	running.Go(func() {
		all := bus.Scope{Run: k.run}
		err := conn.Log(all, bus.Train).Follow(ctx, fmt.Sprintf("%d.*.*", r.rank), func(e bus.Entry) error { return r.serve(ctx, k, conn, e) }, nil)
		if ctx.Err() == nil {
			t.Errorf("rank %d stopped: %v", r.rank, err)
		}
	})
	return r
}

// beat says who is here, to the coordinator that the bus names.
func (r *fakeRank) beat(ctx context.Context, t *testing.T, k *kit, conn *bus.Conn) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if value, err := conn.Values(k.run).Get(ctx, keyTrainer); err == nil {
			var c coordinatorValue
			if err := bus.DecodeStrict(value.Data, &c); err != nil {
				t.Error(err)
				return
			}
			r.mu.Lock()
			p := presence{Version: version, Session: c.Session, Rank: r.rank, World: r.world, Host: "here", Instance: r.instance}
			r.mu.Unlock()
			data, _ := json.Marshal(p)
			scope := bus.Scope{Run: k.run, Incarnation: c.Incarnation}
			err := conn.Log(scope, bus.Events).Append(ctx, fmt.Sprintf("trainer.%d", r.rank), bus.Message{Schema: SchemaRank, Data: data})
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// serve carries out one command.
func (r *fakeRank) serve(ctx context.Context, k *kit, conn *bus.Conn, e bus.Entry) error {
	parts := strings.Split(e.Key, ".")
	file, err := safetensors.Decode(e.Message.Data)
	if err != nil {
		return err
	}
	var c struct {
		Version  int             `json:"version"`
		Instance string          `json:"instance"`
		Body     json.RawMessage `json:"body"`
	}
	if err := bus.DecodeStrict([]byte(file.Metadata["message"]), &c); err != nil {
		return err
	}
	r.mu.Lock()
	mine := c.Instance == r.instance
	if mine {
		r.seen = append(r.seen, parts[2])
	}
	r.mu.Unlock()
	if !mine {
		return nil
	}
	answers := conn.Log(bus.Scope{Run: k.run, Incarnation: e.Incarnation}, bus.Scores)
	first := r.handle(request{name: parts[2], body: c.Body, tensors: file.Tensors})
	suffix := ""
	for rep := &first; rep != nil && !rep.none; rep, suffix = rep.later, "d" {
		m, err := encodeAnswer(parts[2], c.Instance, *rep)
		if err != nil {
			return err
		}
		if _, err := answers.Create(ctx, parts[0]+"."+parts[1]+suffix, m); err != nil {
			return err
		}
	}
	return nil
}

// encodeAnswer renders an answer as the Python side does.
func encodeAnswer(name, instance string, rep reply) (bus.Message, error) {
	body, err := json.Marshal(rep.body)
	if rep.body == nil {
		body = []byte("{}")
	}
	if err != nil {
		return bus.Message{}, err
	}
	text, err := json.Marshal(answer{Version: version, Instance: instance, Command: name, Error: rep.err, Body: body})
	if err != nil {
		return bus.Message{}, err
	}
	metadata := map[string]string{"schema": SchemaAnswer, "version": strconv.Itoa(version), "message": string(text)}
	data, err := safetensors.Encode(safetensors.File{Metadata: metadata, Tensors: rep.tensors})
	return bus.Message{Schema: SchemaAnswer + "/1", Data: data}, err
}

// set starts ranks that all do the same, and a trainer over them.
func set(t *testing.T, k *kit, options Options, handle func(rank int, r request) reply) (*Trainer, []*fakeRank) {
	t.Helper()
	options.Conn, options.Scope = k.conn, bus.Scope{Run: k.run, Incarnation: 7}
	var ranks []*fakeRank
	for rank := range max(1, options.Ranks) {
		ranks = append(ranks, startRank(t, k, &fakeRank{rank: rank, world: max(1, options.Ranks), instance: "one",
			handle: func(r request) reply { return handle(rank, r) }}))
	}
	made, err := New(t.Context(), options)
	must(t, err)
	t.Cleanup(func() {
		if err := made.Close(); err != nil {
			t.Error(err)
		}
	})
	return made, ranks
}
