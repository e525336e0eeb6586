package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// LeaseOptions describe a lease to be acquired.
type LeaseOptions struct {
	// Key names what the holder is alone to hold. Required.
	Key string
	// Holder says who asks, for the messages of those who wait. Required.
	Holder string
	// TTL is how long the lease outlives a holder that has died; whole seconds.
	// Default 3 s. It is renewed every third of it.
	TTL time.Duration
	// TakeOver takes the lease from whoever has it, without waiting; for a bus
	// that lives in the holder's own process, so that an earlier holder is
	// certainly dead. Default false.
	TakeOver bool
	// Above is an incarnation that the new one must exceed: the last one that
	// the run directory knows, in case the bus was wiped. Default 0.
	Above uint64
}

// Lease is the right to be the only holder of a key, renewed in the background
// until Release or its loss.
type Lease struct {
	values      *Values
	options     LeaseOptions
	incarnation uint64

	cancel   context.CancelFunc
	done     chan struct{} // the renewing goroutine has ended
	lost     chan struct{}
	once     sync.Once
	revision uint64 // of the last renewal; owned by the goroutine until done
}

// record is the value of a lease.
type record struct {
	Version int    `json:"version"`
	Holder  string `json:"holder"`
}

// Acquire takes a lease, waiting until ctx ends while another has it (ErrHeld).
func (v *Values) Acquire(ctx context.Context, options LeaseOptions) (*Lease, error) {
	if options.TTL == 0 {
		options.TTL = 3 * time.Second
	}
	if options.TTL < time.Second || options.TTL%time.Second != 0 || options.Holder == "" {
		return nil, fmt.Errorf("bus: lease %q: TTL %s, want whole seconds; holder %q, want a name", options.Key, options.TTL, options.Holder)
	}
	ctx, cancel := v.conn.bounded(ctx, "")
	defer cancel()
	start := time.Now()
	for {
		asked := time.Now()
		revision, holder, err := v.claim(ctx, options)
		if err != nil {
			return nil, err
		}
		if holder == "" {
			return v.keep(options, revision, asked), nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			if errors.Is(err, context.Canceled) {
				return nil, err
			}
			return nil, fmt.Errorf("%w: %s of run %s by %s, after %s", ErrHeld, options.Key, v.run, holder, time.Since(start).Round(time.Millisecond))
		}
	}
}

// claim tries once. It returns who has the lease, or nobody and the revision of
// the claim.
func (v *Values) claim(ctx context.Context, options LeaseOptions) (revision uint64, holder string, err error) {
	last := uint64(0)
	present, err := v.latest(ctx, options.Key)
	if err != nil {
		return 0, "", err
	}
	if present != nil {
		var r record
		live := present.Data != nil
		if live && json.Unmarshal(present.Data, &r) != nil {
			r.Holder = "unreadable"
		}
		if live && !options.TakeOver {
			return 0, r.Holder, nil
		}
		last = present.Revision
	}
	revision, created, err := v.write(ctx, options, last)
	if err != nil {
		return 0, "", err
	}
	if !created { // somebody was faster
		return 0, "a rival", nil
	}
	return revision, "", nil
}

// latest reads the last entry of a key, deletions included; nil if there never
// was one.
func (v *Values) latest(ctx context.Context, name string) (*Value, error) {
	key, err := v.key(name)
	if err != nil {
		return nil, err
	}
	stream, err := v.conn.js.Stream(ctx, "KV_"+bucket)
	if err != nil {
		return nil, fmt.Errorf("bus: reading %s: %w", key, v.conn.named(ctx, err))
	}
	raw, err := stream.GetLastMsgForSubject(ctx, keySubject(key))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bus: reading %s: %w", key, v.conn.named(ctx, err))
	}
	value := &Value{Revision: raw.Sequence}
	if raw.Header.Get("KV-Operation") == "" && raw.Header.Get("Nats-Marker-Reason") == "" {
		value.Data = raw.Data
	}
	return value, nil
}

// write stores the lease if last is still the last revision of its key.
func (v *Values) write(ctx context.Context, options LeaseOptions, last uint64) (revision uint64, written bool, err error) {
	data, err := json.Marshal(record{Version: 1, Holder: options.Holder})
	if err != nil {
		return 0, false, err
	}
	return v.swap(ctx, options.Key, data, last, jetstream.WithMsgTTL(options.TTL))
}

// keep starts the renewal of a lease that was claimed after asked.
func (v *Values) keep(options LeaseOptions, revision uint64, asked time.Time) *Lease {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Lease{
		values: v, options: options, revision: revision, incarnation: max(revision, options.Above+1),
		cancel: cancel, done: make(chan struct{}), lost: make(chan struct{}),
	}
	go func() {
		defer close(l.done)
		// The server counts from when it stored the claim, which is after asked: we
		// give up before it does.
		l.renew(ctx, asked.Add(options.TTL))
	}()
	return l
}

// renew writes the lease again and again until ctx ends or it is lost. It expires
// at until unless it is renewed.
func (l *Lease) renew(ctx context.Context, until time.Time) {
	ticker := time.NewTicker(l.options.TTL / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		attempt, cancel := context.WithDeadline(ctx, until)
		sent := time.Now()
		revision, written, err := l.values.write(attempt, l.options, l.revision)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil || !written:
			// An error lasted until the lease had expired; not written means that
			// another has it, or that our own answer was lost: then nobody else
			// may have it yet, but we no longer know. Both are a loss.
			close(l.lost)
			return
		}
		l.revision, until = revision, sent.Add(l.options.TTL)
	}
}

// Incarnation is the revision at which the lease was acquired, or Above + 1 if
// that is higher: it is greater than that of every earlier holder.
func (l *Lease) Incarnation() uint64 { return l.incarnation }

// Lost is closed when the lease is not held any more, other than by Release.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Release gives the lease up, so that the next holder need not wait for its
// expiry. It may be called more than once, and after a loss.
func (l *Lease) Release(ctx context.Context) error {
	l.cancel()
	<-l.done
	var err error
	l.once.Do(func() {
		select {
		case <-l.lost:
			return
		default:
		}
		err = l.delete(ctx)
	})
	return err
}

// delete writes a deletion over our own last revision.
func (l *Lease) delete(ctx context.Context) error {
	key, err := l.values.key(l.options.Key)
	if err != nil {
		return err
	}
	msg := &nats.Msg{Subject: keySubject(key), Header: nats.Header{}}
	msg.Header.Set("KV-Operation", "DEL")
	_, _, err = l.values.conn.publish(ctx, msg, jetstream.WithExpectLastSequencePerSubject(l.revision))
	return err
}
