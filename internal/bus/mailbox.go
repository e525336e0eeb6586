package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// MailboxName is the name of the durable consumer of one trainer rank.
func MailboxName(run, rank string) string { return run + "_" + rank }

// Mailbox creates the durable pull consumer from which a process in another
// language reads the values of keys below owner (a rank): manifests and whole
// values alike, parts too, in order, acknowledged one by one. Only a
// coordinator does that.
func (c *Conn) Mailbox(ctx context.Context, run string, kind Kind, owner string) error {
	if err := CheckName(owner); err != nil {
		return err
	}
	ctx, cancel := c.bounded(ctx, "")
	defer cancel()
	name := MailboxName(run, owner)
	_, err := c.js.CreateOrUpdateConsumer(ctx, streams[kind], jetstream.ConsumerConfig{
		Durable: name, FilterSubject: Scope{Run: run}.subject(kind, owner+".>"),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxDeliver: -1, MaxAckPending: 1 << 14,
	})
	if err != nil {
		return fmt.Errorf("bus: consumer %s of %s: %w", name, streams[kind], c.named(ctx, err))
	}
	return nil
}
