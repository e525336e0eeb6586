package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Value is the latest value of a key.
type Value struct {
	Data     []byte // nil after a deletion
	Revision uint64 // rises with every change in the bucket
}

// Values are the latest values of one run, each under a key of dot-separated
// names.
type Values struct {
	conn *Conn
	run  string
}

// Values returns the latest values of run.
func (c *Conn) Values(run string) *Values { return &Values{conn: c, run: run} }

// key renders the key of name in the bucket.
func (v *Values) key(name string) (string, error) {
	if err := checkKey(name); err != nil {
		return "", err
	}
	return v.run + "." + name, nil
}

// Update sets the value of name to what change makes of the present one (nil:
// there is none) and returns its revision. Where another writer comes in
// between, change is asked again; its error ends the update.
func (v *Values) Update(ctx context.Context, name string, change func(present []byte) ([]byte, error)) (uint64, error) {
	ctx, cancel := v.conn.bounded(ctx, "")
	defer cancel()
	for {
		present, err := v.latest(ctx, name)
		if err != nil {
			return 0, err
		}
		if present == nil {
			present = &Value{}
		}
		data, err := change(present.Data)
		if err != nil {
			return 0, err
		}
		revision, written, err := v.swap(ctx, name, data, present.Revision)
		if err != nil || written {
			return revision, err
		}
	}
}

// Announce sets the value by which a coordinator makes something known, a JSON
// object whose member "incarnation" is its own, and returns its revision. It
// fails with ErrSuperseded when the present value is of a higher incarnation: a
// coordinator that was held up while another took over would set everybody back
// who starts later. A present value of no incarnation is nobody's.
func (v *Values) Announce(ctx context.Context, name string, data []byte) (uint64, error) {
	mine := incarnationOf(data)
	if mine == 0 {
		return 0, fmt.Errorf("bus: announcing %s: no incarnation in %.100q", name, data)
	}
	return v.Update(ctx, name, func(present []byte) ([]byte, error) {
		if other := incarnationOf(present); other > mine {
			return nil, fmt.Errorf("%w: value %s is of incarnation %d of run %s, this one is %d", ErrSuperseded, name, other, v.run, mine)
		}
		return data, nil
	})
}

// incarnationOf reads the incarnation out of an announced value; 0 when there is
// none.
func incarnationOf(data []byte) uint64 {
	var value struct {
		Incarnation uint64 `json:"incarnation"`
	}
	if json.Unmarshal(data, &value) != nil {
		return 0
	}
	return value.Incarnation
}

// swap sets the value of name if last is still the last revision of its key (0:
// there never was one), and says whether it did.
func (v *Values) swap(ctx context.Context, name string, data []byte, last uint64, options ...jetstream.PublishOpt) (revision uint64, written bool, err error) {
	key, err := v.key(name)
	if err != nil {
		return 0, false, err
	}
	msg := &nats.Msg{Subject: keySubject(key), Data: data, Header: nats.Header{}}
	return v.conn.publish(ctx, msg, append(options, jetstream.WithExpectLastSequencePerSubject(last))...)
}

// keySubject is the subject under which the bucket stores key.
func keySubject(key string) string { return "$KV." + bucket + "." + key }

// Get reads the value of name, or fails with ErrNotFound.
func (v *Values) Get(ctx context.Context, name string) (Value, error) {
	key, err := v.key(name)
	if err != nil {
		return Value{}, err
	}
	ctx, cancel := v.conn.bounded(ctx, "")
	defer cancel()
	kv, err := v.conn.js.KeyValue(ctx, bucket)
	if err == nil {
		var entry jetstream.KeyValueEntry
		if entry, err = kv.Get(ctx, key); err == nil {
			return Value{Data: entry.Value(), Revision: entry.Revision()}, nil
		}
	}
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrBucketNotFound) { // no run was ever set up
		return Value{}, fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return Value{}, fmt.Errorf("bus: reading %s: %w", key, v.conn.named(ctx, err))
}

// Watch calls handle with the present value of name, if there is one, and with
// every later one, until ctx ends, whose cause it returns, or handle fails. A
// deletion or an expiry is a Value without Data. Values that follow each other
// faster than handle returns may be skipped, the last one never.
func (v *Values) Watch(ctx context.Context, name string, handle func(Value) error) error {
	key, err := v.key(name)
	if err != nil {
		return err
	}
	return persist(ctx, "watching "+key, func() error { return v.watch(ctx, key, handle) })
}

// watch follows key with one watcher.
func (v *Values) watch(ctx context.Context, key string, handle func(Value) error) error {
	setup, cancel := v.conn.bounded(ctx, "")
	kv, err := v.conn.js.KeyValue(setup, bucket)
	err = v.conn.named(setup, err)
	cancel()
	if err != nil {
		return err
	}
	inner, stop := context.WithCancel(ctx)
	defer stop()
	watcher, err := kv.Watch(inner, key)
	if err != nil {
		return err
	}
	for entry := range watcher.Updates() {
		if entry == nil { // the present value, if any, has been sent
			continue
		}
		value := Value{Revision: entry.Revision()}
		if entry.Operation() == jetstream.KeyValuePut {
			value.Data = entry.Value()
		}
		if err := handle(value); err != nil {
			return errors.Join(&handlerError{err}, watcher.Stop())
		}
	}
	return errors.New("watcher ended")
}
