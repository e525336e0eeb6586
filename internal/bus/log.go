package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Log holds create-only values of one kind and scope: a key, once written,
// keeps its value until it is purged.
type Log struct {
	conn  *Conn
	scope Scope
	kind  Kind
}

// Log returns the log of kind in scope.
func (c *Conn) Log(scope Scope, kind Kind) *Log { return &Log{conn: c, scope: scope, kind: kind} }

// Entry is a value as it lies in a log.
type Entry struct {
	Key         string
	Incarnation uint64
	Sequence    uint64 // in the stream, rising
	Message     Message
}

// Create writes m under key unless the key has a value already, and says
// whether it did; "already there" is a success. While the stream is full it
// waits for room until ctx ends (ErrFull).
func (l *Log) Create(ctx context.Context, key string, m Message) (created bool, err error) {
	if err := checkKey(key); err != nil {
		return false, err
	}
	if l.scope.Incarnation == 0 {
		return false, fmt.Errorf("%w: creating %s %s without an incarnation", ErrName, l.kind, key)
	}
	subject, parts := l.scope.subject(l.kind, key), ""
	if len(m.Data) > MaxValue {
		return false, fmt.Errorf("%w: %s has %d bytes, the limit is %d", ErrTooLarge, subject, len(m.Data), MaxValue)
	}
	if len(m.Data) > PartBytes {
		if m, err = l.conn.putParts(ctx, subject, m); err != nil {
			return false, err
		}
		parts = "manifest"
	}
	return l.conn.create(ctx, envelope(subject, m, parts))
}

// Append writes m under key whether or not the key has a value: for events,
// of which the latest or the sequence counts. m may not exceed PartBytes.
func (l *Log) Append(ctx context.Context, key string, m Message) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if len(m.Data) > PartBytes || l.scope.Incarnation == 0 {
		return fmt.Errorf("%w: appending %d bytes to %s %s of incarnation %d", ErrTooLarge, len(m.Data), l.kind, key, l.scope.Incarnation)
	}
	_, _, err := l.conn.publish(ctx, envelope(l.scope.subject(l.kind, key), m, ""))
	return err
}

// Get reads the value of key, or fails with ErrNotFound.
func (l *Log) Get(ctx context.Context, key string) (Message, error) {
	if err := checkKey(key); err != nil {
		return Message{}, err
	}
	ctx, cancel := l.conn.bounded(ctx, "")
	defer cancel()
	subject := l.scope.subject(l.kind, key)
	stream, err := l.conn.js.Stream(ctx, streams[l.kind])
	if err != nil {
		return Message{}, fmt.Errorf("bus: reading %s: %w", subject, l.conn.named(ctx, err))
	}
	raw, err := stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Message{}, fmt.Errorf("%w: %s", ErrNotFound, subject)
	}
	if err != nil {
		return Message{}, fmt.Errorf("bus: reading %s: %w", subject, l.conn.named(ctx, err))
	}
	m, err := resolve(ctx, stream, subject, raw.Header, raw.Data)
	if err != nil {
		return Message{}, fmt.Errorf("bus: %w", l.conn.named(ctx, err))
	}
	return m, nil
}

// resolve opens a stored message and collects its parts if it is a manifest.
func resolve(ctx context.Context, stream jetstream.Stream, subject string, header nats.Header, data []byte) (Message, error) {
	m, err := open(subject, header, data)
	if err != nil || header.Get(headerParts) != "manifest" {
		return m, err
	}
	manifest, err := parseManifest(m.Data)
	if err != nil {
		return Message{}, fmt.Errorf("%s: %w", subject, err)
	}
	m.Data, err = getParts(ctx, stream, subject, manifest)
	return m, err
}

// Purge deletes the value of key and its parts, and with them the values of all
// keys below it. No value is no error.
func (l *Log) Purge(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil { // a wildcard would purge what was not meant
		return err
	}
	subject := l.scope.subject(l.kind, key)
	if err := l.conn.purge(ctx, streams[l.kind], subject); err != nil {
		return err
	}
	return l.conn.purge(ctx, streams[l.kind], subject+".>")
}

// purge deletes everything under a subject.
func (c *Conn) purge(ctx context.Context, name, subject string) error {
	ctx, cancel := c.bounded(ctx, "")
	defer cancel()
	stream, err := c.js.Stream(ctx, name)
	if err == nil {
		err = stream.Purge(ctx, jetstream.WithPurgeSubject(subject))
	}
	if err != nil {
		return fmt.Errorf("bus: purging %s: %w", subject, c.named(ctx, err))
	}
	return nil
}

// Follow calls handle with every value whose key matches pattern (tokens, * for
// any one), first those that are stored, then the new ones as they come, in
// order, until ctx ends, whose cause it returns, or handle fails. It survives
// the loss of the connection and a restart of the server. A value that cannot
// be read is handed to bad, when that is not nil, and passed over.
func (l *Log) Follow(ctx context.Context, pattern string, handle func(Entry) error, bad func(error)) error {
	next := uint64(1)
	return persist(ctx, "following "+l.scope.subject(l.kind, pattern), func() error { return l.follow(ctx, pattern, &next, handle, bad) })
}

// persist runs read again whenever it fails, until ctx ends, whose cause it
// returns, a handler fails, or the connection can never serve it.
func persist(ctx context.Context, what string, read func() error) error {
	for {
		err := read()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var own *handlerError
		if errors.As(err, &own) {
			return own.err
		}
		if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, ErrDenied) {
			return fmt.Errorf("bus: %s: %w", what, err)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// handlerError marks an error of the caller's handler.
type handlerError struct{ err error }

// Error implements error.
func (e *handlerError) Error() string { return e.err.Error() }

// follow reads with one consumer from sequence *next on, which it keeps up to
// date, until something fails.
func (l *Log) follow(ctx context.Context, pattern string, next *uint64, handle func(Entry) error, bad func(error)) error {
	setup, cancel := l.conn.bounded(ctx, "")
	stream, err := l.conn.js.Stream(setup, streams[l.kind])
	if err != nil {
		err = l.conn.named(setup, err)
		cancel()
		return err
	}
	consumer, err := stream.OrderedConsumer(setup, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{l.scope.subject(l.kind, pattern)},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy, OptStartSeq: *next,
	})
	err = l.conn.named(setup, err)
	cancel()
	if err != nil {
		return err
	}
	// Bounded in bytes: the default of 500 messages overruns the server's
	// pending limit with large groups.
	messages, err := consumer.Messages(jetstream.PullMaxBytes(16 << 20))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, messages.Stop)
	defer stop()
	defer messages.Stop()
	for {
		msg, err := messages.Next()
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Stream < *next {
			continue
		}
		if err := l.deliver(ctx, stream, msg, handle, bad); err != nil {
			return err
		}
		*next = meta.Sequence.Stream + 1
	}
}

// deliver hands one message on.
func (l *Log) deliver(ctx context.Context, stream jetstream.Stream, msg jetstream.Msg, handle func(Entry) error, bad func(error)) error {
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	scope, _, key, err := parseSubject(msg.Subject())
	var m Message
	if err == nil {
		m, err = resolve(ctx, stream, msg.Subject(), msg.Headers(), msg.Data())
	}
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrName) {
		if bad != nil {
			bad(err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if strings.Contains(key, "."+partToken) {
		return nil
	}
	if err := handle(Entry{Key: key, Incarnation: scope.Incarnation, Sequence: meta.Sequence.Stream, Message: m}); err != nil {
		return &handlerError{err}
	}
	return nil
}
