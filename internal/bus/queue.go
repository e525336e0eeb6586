package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Timing of tasks: one that was not heard of for AckWait goes to another taker;
// its holder is heard of every BeatEvery.
const (
	AckWait   = 2500 * time.Millisecond
	BeatEvery = 500 * time.Millisecond
)

// MaxTask is the largest task, in bytes.
const MaxTask = 1 << 20

// Queue hands tasks of one run to takers, each to one at a time. The stored
// task is removed when its taker says Done.
type Queue struct {
	conn  *Conn
	scope Scope
}

// Queue returns the job queue of scope. Tasks are put under
// scope.Incarnation; takers get those of every incarnation and look at
// Task.Incarnation.
func (c *Conn) Queue(scope Scope) *Queue { return &Queue{conn: c, scope: scope} }

// Put stores a task under key, one name. A key that is in the queue already
// keeps its task, and Put reports false; after its Done it may be put again.
func (q *Queue) Put(ctx context.Context, key string, m Message) (fresh bool, err error) {
	if err := CheckName(key); err != nil {
		return false, err
	}
	if q.scope.Incarnation == 0 {
		return false, fmt.Errorf("%w: putting task %s without an incarnation", ErrName, key)
	}
	if len(m.Data) > MaxTask {
		return false, fmt.Errorf("%w: task %s has %d bytes, the limit is %d", ErrTooLarge, key, len(m.Data), MaxTask)
	}
	return q.conn.create(ctx, envelope(q.scope.subject(Jobs, key), m, ""))
}

// Remove takes the task of key out of the queue whether or not somebody works
// on it. No task is no error. It deletes one message: a purge by subject would
// make the server forget which tasks were returned, until their AckWait.
func (q *Queue) Remove(ctx context.Context, key string) error {
	if err := CheckName(key); err != nil { // a wildcard would remove any
		return err
	}
	ctx, cancel := q.conn.bounded(ctx, "")
	defer cancel()
	subject := q.scope.subject(Jobs, key)
	for {
		err := q.remove(ctx, subject)
		if err == nil || errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			return fmt.Errorf("bus: removing %s: %w", subject, q.conn.named(ctx, err))
		}
		// Its taker was done with it just now, or the server refuses: look again.
		if pauseErr := pause(ctx, 20*time.Millisecond); pauseErr != nil {
			return fmt.Errorf("bus: removing %s: %w: %w", subject, pauseErr, err)
		}
	}
}

// remove deletes the message of subject once.
func (q *Queue) remove(ctx context.Context, subject string) error {
	stream, err := q.conn.js.Stream(ctx, streams[Jobs])
	if err != nil {
		return err
	}
	raw, err := stream.GetLastMsgForSubject(ctx, subject)
	if err != nil {
		return err
	}
	return stream.DeleteMsg(ctx, raw.Sequence)
}

// Next waits for a task until ctx ends. While the bus is away, or the
// coordinator has not set up the run yet, it goes on waiting.
func (q *Queue) Next(ctx context.Context) (*Task, error) {
	for {
		task, err := q.fetch(ctx)
		if task != nil {
			return task, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, ErrDenied) {
				return nil, fmt.Errorf("bus: pulling jobs of run %s: %w", q.scope.Run, err)
			}
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return nil, err
			}
		}
	}
}

// fetch asks for one task once.
func (q *Queue) fetch(ctx context.Context) (*Task, error) {
	ctx, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	ctx, cancel := q.conn.bounded(ctx, "")
	defer cancel()
	consumer, err := q.conn.js.Consumer(ctx, streams[Jobs], q.scope.Run)
	if err != nil {
		return nil, q.conn.named(ctx, err)
	}
	batch, err := consumer.Fetch(1, jetstream.FetchContext(ctx))
	if err != nil {
		return nil, q.conn.named(ctx, err)
	}
	for msg := range batch.Messages() {
		return q.task(msg)
	}
	err = q.conn.named(ctx, batch.Error())
	if err != nil && !errors.Is(err, ErrTimeout) && !errors.Is(err, nats.ErrTimeout) {
		return nil, err
	}
	return nil, nil
}

// task opens a delivered message. One that cannot be read is thrown away: it
// would only come back.
func (q *Queue) task(msg jetstream.Msg) (*Task, error) {
	scope, _, key, err := parseSubject(msg.Subject())
	if err == nil {
		var m Message
		if m, err = open(msg.Subject(), msg.Headers(), msg.Data()); err == nil {
			delivered := 1
			if meta, err := msg.Metadata(); err == nil {
				delivered = int(min(meta.NumDelivered, 1<<30))
			}
			return &Task{Key: key, Incarnation: scope.Incarnation, Message: m, Delivered: delivered, msg: msg}, nil
		}
	}
	return nil, errors.Join(err, msg.TermWithReason("unreadable"))
}

// Task is a task in the hands of its taker.
type Task struct {
	Key         string
	Incarnation uint64
	Message     Message
	Delivered   int // 1 for the first taker
	msg         jetstream.Msg
}

// Done removes the task from the queue and waits until the bus has confirmed
// it. It does not fence: a taker that was too slow succeeds too.
func (t *Task) Done(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := t.msg.DoubleAck(ctx); err != nil {
		return fmt.Errorf("bus: finishing task %s: %w", t.Key, err)
	}
	return nil
}

// Return gives the task back to the queue, for the next taker after delay.
func (t *Task) Return(delay time.Duration) error {
	if err := t.msg.NakWithDelay(delay); err != nil {
		return fmt.Errorf("bus: returning task %s: %w", t.Key, err)
	}
	return nil
}

// Drop removes the task for good without a confirmation; for tasks that nobody
// wants any more.
func (t *Task) Drop(reason string) error {
	if err := t.msg.TermWithReason(reason); err != nil {
		return fmt.Errorf("bus: dropping task %s: %w", t.Key, err)
	}
	return nil
}

// Hold keeps the task from other takers while work on it goes forward: it beats
// every BeatEvery as long as progress was marked within the last stall. A
// taker that hangs falls silent and loses the task after AckWait. stop ends it
// and must be called.
func (t *Task) Hold(stall time.Duration) (progress, stop func()) {
	var last atomic.Int64
	last.Store(time.Now().UnixNano())
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(BeatEvery)
		defer ticker.Stop()
		for {
			select {
			case now := <-ticker.C:
				if now.UnixNano()-last.Load() > int64(stall) {
					continue
				}
				if err := t.msg.InProgress(); errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
					return
				} // any other error: not connected, the next beat may pass
			case <-quit:
				return
			}
		}
	}()
	var once sync.Once
	return func() { last.Store(time.Now().UnixNano()) }, func() {
		once.Do(func() { close(quit) })
		<-done
	}
}
