package bus

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// bucket is the key-value bucket of latest values and leases.
const bucket = "uadt"

// streams maps each kind to the stream that stores it.
var streams = map[Kind]string{
	Jobs: "JOBS", Traces: "TRACES", Train: "TRAIN", Scores: "SCORES", Events: "EVENTS",
}

// Limits size the streams. Each refuses new messages when it is full (the
// publisher waits); EVENTS forgets the oldest instead. Traces must hold all
// groups of a step and one more for every worker: less, and a step could wait
// for room that only its own end would make.
type Limits struct {
	// Jobs, Traces, Train and Scores are bytes. Defaults: 256 MiB, 4 GiB, 4 GiB,
	// 2 GiB.
	Jobs, Traces, Train, Scores int64
	// Events are bytes, default 256 MiB; EventAge is how long one is kept,
	// default 1 h.
	Events   int64
	EventAge time.Duration
	// Replicas of every stream. Default 1; 3 on a cluster.
	Replicas int
}

// withDefaults fills in what is zero.
func (l Limits) withDefaults() Limits {
	set := func(value *int64, byDefault int64) {
		if *value == 0 {
			*value = byDefault
		}
	}
	set(&l.Jobs, 256<<20)
	set(&l.Traces, 4<<30)
	set(&l.Train, 4<<30)
	set(&l.Scores, 2<<30)
	set(&l.Events, 256<<20)
	if l.EventAge == 0 {
		l.EventAge = time.Hour
	}
	if l.Replicas == 0 {
		l.Replicas = 1
	}
	return l
}

// Setup creates the streams, the bucket and the job consumer of run, or brings
// them up to date. Only a coordinator does that.
func (c *Conn) Setup(ctx context.Context, run string, limits Limits) error {
	if err := CheckName(run); err != nil {
		return fmt.Errorf("bus: run: %w", err)
	}
	ctx, cancel := c.bounded(ctx, "")
	defer cancel()
	limits = limits.withDefaults()
	for kind, size := range map[Kind]int64{
		Jobs: limits.Jobs, Traces: limits.Traces, Train: limits.Train, Scores: limits.Scores, Events: limits.Events,
	} {
		config := jetstream.StreamConfig{
			Name: streams[kind], Subjects: []string{prefix + ".*.*." + string(kind) + ".>"},
			Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, MaxBytes: size,
			Replicas: limits.Replicas, AllowDirect: true,
		}
		switch kind {
		case Jobs:
			config.Retention = jetstream.WorkQueuePolicy
		case Events:
			config.Discard, config.MaxAge = jetstream.DiscardOld, limits.EventAge
		}
		if _, err := c.js.CreateOrUpdateStream(ctx, config); err != nil {
			return fmt.Errorf("bus: stream %s: %w", config.Name, c.named(ctx, err))
		}
	}
	_, err := c.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, Storage: jetstream.FileStorage, Replicas: limits.Replicas,
		LimitMarkerTTL: time.Minute, // allows a TTL per key
	})
	if err != nil {
		return fmt.Errorf("bus: bucket %s: %w", bucket, c.named(ctx, err))
	}
	_, err = c.js.CreateOrUpdateConsumer(ctx, streams[Jobs], jetstream.ConsumerConfig{
		Durable: run, FilterSubject: Scope{Run: run}.subject(Jobs, "*"),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: AckWait,
		// A failed job is answered, not redelivered; what is redelivered belonged
		// to a taker that died, and that may happen any number of times.
		MaxDeliver: -1, MaxAckPending: 1 << 16,
	})
	if err != nil {
		return fmt.Errorf("bus: consumer %s of %s: %w", run, streams[Jobs], c.named(ctx, err))
	}
	return nil
}

// PurgeOlder deletes every message of run that belongs to an incarnation below
// the given one, and says how many messages there were.
func (c *Conn) PurgeOlder(ctx context.Context, scope Scope) (uint64, error) {
	ctx, cancel := c.bounded(ctx, "")
	defer cancel()
	total := uint64(0)
	for _, name := range streams {
		n, err := c.purgeOlderIn(ctx, name, scope)
		if err != nil {
			return total, fmt.Errorf("bus: purging %s of run %s below incarnation %d: %w",
				name, scope.Run, scope.Incarnation, c.named(ctx, err))
		}
		total += n
	}
	return total, nil
}

// purgeOlderIn does it in one stream.
func (c *Conn) purgeOlderIn(ctx context.Context, name string, scope Scope) (uint64, error) {
	stream, err := c.js.Stream(ctx, name)
	if err != nil {
		return 0, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(prefix+"."+scope.Run+".>"))
	if err != nil {
		return 0, err
	}
	older, total := map[uint64]bool{}, uint64(0)
	for subject, count := range info.State.Subjects {
		owner, _, _, err := parseSubject(subject)
		if err == nil && owner.Incarnation < scope.Incarnation {
			older[owner.Incarnation] = true
			total += count
		}
	}
	for e := range older {
		filter := strings.Join([]string{prefix, scope.Run, strconv.FormatUint(e, 10), ">"}, ".")
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(filter)); err != nil {
			return total, err
		}
	}
	return total, nil
}

// Depth counts what a stream holds of a scope and kind.
type Depth struct {
	Messages uint64 // of the scope, parts included
	Bytes    uint64 // of the whole stream
}

// Depth measures how full the stream of kind is.
func (c *Conn) Depth(ctx context.Context, scope Scope, kind Kind) (Depth, error) {
	ctx, cancel := c.bounded(ctx, "")
	defer cancel()
	stream, err := c.js.Stream(ctx, streams[kind])
	if err != nil {
		return Depth{}, fmt.Errorf("bus: stream of %s: %w", kind, c.named(ctx, err))
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(scope.subject(kind, ">")))
	if err != nil {
		return Depth{}, fmt.Errorf("bus: stream of %s: %w", kind, c.named(ctx, err))
	}
	depth := Depth{Bytes: info.State.Bytes}
	for _, count := range info.State.Subjects {
		depth.Messages += count
	}
	return depth, nil
}
