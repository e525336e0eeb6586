package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/trainer"
)

// keyTrainer is the value that tells ranks who coordinates.
const keyTrainer = "trainer"

// coordinatorValue is the value keyTrainer.
type coordinatorValue struct {
	Version     int    `json:"version"`
	Incarnation uint64 `json:"incarnation"`
	Session     string `json:"session"`
}

// Trainer is a set of ranks on the bus. Its methods may be called from several
// goroutines, those of a stage one after the other.
type Trainer struct {
	options  Options
	session  string
	commands *bus.Log
	answers  *bus.Log
	cancel   context.CancelFunc
	ctx      context.Context // of the followers
	follow   sync.WaitGroup
	order    sync.Mutex // held for the length of a command

	mu      sync.Mutex
	changed chan struct{} // closed and made anew at every change below
	ranks   map[int]*rankState
	waits   map[string]*gathering // by key of the answer
	number  int
	stage   *stage
	closed  bool
	local   *processes // started by us; nil without Launch or before the first Begin
}

// rankState is what is known of a rank.
type rankState struct {
	presence
	heard time.Time // by our own clock
}

// stage is what Begin has begun.
type stage struct {
	instance string
	base     string // directory that the stage started from at first
	model    string // directory that it started from this time
	done     int    // optimizer steps
	loaded   map[int]*layout
	broken   error // why nothing works until the next Begin
}

var (
	_ trainer.Backend = (*Trainer)(nil)
	_ trainer.Keeper  = (*Trainer)(nil)
	_ trainer.Encoder = (*Trainer)(nil)
)

// New makes the mailboxes of the ranks, names this coordinator on the bus and
// listens for ranks. It waits for none: Begin does. Close it after use. It fails
// with bus.ErrSuperseded when a coordinator of a higher incarnation has the run.
func New(ctx context.Context, options Options) (*Trainer, error) {
	o, err := options.prepare()
	if err != nil {
		return nil, err
	}
	for rank := range o.Ranks {
		if err := o.Conn.Mailbox(ctx, o.Scope.Run, bus.Train, fmt.Sprint(rank)); err != nil {
			return nil, fmt.Errorf("remote trainer: %w", err)
		}
	}
	t := &Trainer{
		options: o, session: randomName(), commands: o.Conn.Log(o.Scope, bus.Train), answers: o.Conn.Log(o.Scope, bus.Scores),
		changed: make(chan struct{}), ranks: map[int]*rankState{}, waits: map[string]*gathering{},
	}
	value, err := json.Marshal(coordinatorValue{Version: version, Incarnation: o.Scope.Incarnation, Session: t.session})
	if err != nil {
		return nil, fmt.Errorf("remote trainer: %w", err)
	}
	if _, err := o.Conn.Values(o.Scope.Run).Announce(ctx, keyTrainer, value); err != nil {
		return nil, fmt.Errorf("remote trainer: %w", err)
	}
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.listen(o.Conn.Log(o.Scope, bus.Events), "trainer.*", t.hear)
	t.listen(t.answers, "*.*", t.receive)
	return t, nil
}

// listen follows a log until Close.
func (t *Trainer) listen(log *bus.Log, pattern string, handle func(bus.Entry) error) {
	t.follow.Go(func() {
		bad := func(err error) { t.options.Log.Warn("unreadable message from a trainer rank", "error", err) }
		if err := log.Follow(t.ctx, pattern, handle, bad); err != nil && t.ctx.Err() == nil {
			t.options.Log.Error("the bus is not listened to any more", "pattern", pattern, "error", err)
		}
	})
}

// hear takes in a heartbeat.
func (t *Trainer) hear(e bus.Entry) error {
	p, err := decodePresence(e.Message)
	if err != nil {
		t.options.Log.Warn("unreadable heartbeat passed over", "key", e.Key, "error", err)
		return nil
	}
	if p.Session != t.session || e.Key != fmt.Sprintf("trainer.%d", p.Rank) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.ranks[p.Rank]
	if known != nil && known.Instance == p.Instance && known.World == p.World {
		known.presence, known.heard = p, time.Now()
		return nil // nothing that anybody waits for
	}
	t.options.Log.Info("trainer rank is here", "rank", p.Rank, "of", p.World, "host", p.Host, "instance", p.Instance)
	t.ranks[p.Rank] = &rankState{presence: p, heard: time.Now()}
	t.wake()
	return nil
}

// wake tells all waiters to look again. The caller holds mu.
func (t *Trainer) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// fullSet returns the instance of a full set of living ranks, or what is
// missing. The caller holds mu.
func (t *Trainer) fullSet() (instance, missing string) {
	want := t.options.Ranks
	for rank := range want {
		r := t.ranks[rank]
		switch {
		case r == nil:
			return "", fmt.Sprintf("rank %d of %d is not on the bus", rank, want)
		case time.Since(r.heard) > t.options.Silence:
			return "", fmt.Sprintf("rank %d was last heard %s ago", rank, time.Since(r.heard).Round(time.Second))
		case r.World != want:
			return "", fmt.Sprintf("rank %d on %s is one of %d ranks, %d are wanted", rank, r.Host, r.World, want)
		case rank > 0 && r.Instance != t.ranks[0].Instance:
			return "", fmt.Sprintf("rank %d is of instance %s, rank 0 of %s", rank, r.Instance, t.ranks[0].Instance)
		}
	}
	return t.ranks[0].Instance, ""
}

// lost says which rank of instance is gone; nil when all are there. The caller
// holds mu.
func (t *Trainer) lost(instance string) error {
	if rank, why := t.local.ended(); why != "" && t.local.instance == instance {
		return &LostError{Rank: rank, Instance: instance, Why: why}
	}
	for rank := range t.options.Ranks {
		r := t.ranks[rank]
		switch {
		case r == nil || r.Instance != instance:
			return &LostError{Rank: rank, Instance: instance, Why: "another process took its place"}
		case time.Since(r.heard) > t.options.Silence:
			return &LostError{Rank: rank, Instance: instance, Why: fmt.Sprintf("no heartbeat for %s (host %s)", time.Since(r.heard).Round(time.Millisecond), r.Host)}
		}
	}
	return nil
}

// assemble waits for a full set, which it starts when that is our task.
func (t *Trainer) assemble(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, t.options.Start)
	defer cancel()
	if err := t.launch(); err != nil {
		return "", err
	}
	start := time.Now()
	ticker := time.NewTicker(t.options.Silence / 8)
	defer ticker.Stop()
	for {
		t.mu.Lock()
		changed := t.changed
		instance, missing := t.fullSet()
		rank, why := t.local.ended()
		ours := t.local == nil || t.local.instance == instance
		t.mu.Unlock()
		switch {
		case why != "":
			return "", &LostError{Rank: rank, Instance: t.local.instance, Why: why}
		case missing == "" && ours:
			return instance, nil
		case missing == "":
			missing = "another set of ranks, " + instance + ", is on the bus of this run"
		}
		select {
		case <-changed:
		case <-t.local.exits():
		case <-ticker.C: // silence is no event
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return "", context.Cause(ctx)
			}
			return "", &TimeoutError{What: fmt.Sprintf("%d trainer ranks (%s)", t.options.Ranks, missing), Waited: time.Since(start), Look: t.look(), Err: ctx.Err()}
		}
	}
}

// look says where the reason of a trainer's silence may be found.
func (t *Trainer) look() string {
	if t.options.Launch != nil {
		return "the logs in " + t.options.Launch.Logs
	}
	return "the output of the trainer processes"
}

// current returns the stage, or why nothing works. The caller holds mu.
func (t *Trainer) current() (*stage, error) {
	switch {
	case t.closed:
		return nil, ErrClosed
	case t.stage == nil:
		return nil, ErrNotBegun
	case t.stage.broken != nil:
		return nil, t.stage.broken
	}
	if err := t.lost(t.stage.instance); err != nil {
		t.stage.broken = err
		return nil, err
	}
	return t.stage, nil
}

// begun returns the stage, or why nothing works.
func (t *Trainer) begun() (*stage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current()
}

// Close stops the ranks that were started here, once their checkpoints are
// written; others keep what they hold for the next coordinator.
func (t *Trainer) Close() error {
	t.order.Lock()
	defer t.order.Unlock()
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	local := t.local
	t.mu.Unlock()
	var err error
	if local != nil {
		err = t.stop(local)
	}
	t.cancel()
	t.follow.Wait()
	return err
}
