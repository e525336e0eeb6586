package coordinator

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// publish offers the weights after step n as version n. The files of an offer
// live until the next but one, so it waits until version n-1 is what the
// sampler is at: at most one published version waits to be adopted.
func (r *ring) publish(ctx context.Context, n int) error {
	b := r.board
	needed := false
	err := b.wait(ctx, func() bool {
		needed = !b.samplerDone
		return b.entered >= n-1 || b.samplerDone
	})
	if err != nil || !needed {
		return err
	}
	policy := rollout.Policy{Incarnation: r.o.Incarnation, Version: r.base + n}
	var offer rollout.Offer
	err = bounded(ctx, await{fmt.Sprintf("trainer, publish of version %d", n), r.o.Limits.Publish, "the trainer's log"},
		func(ctx context.Context) (err error) {
			offer, err = r.o.Parts.Keeper.Publish(ctx, policy)
			return err
		})
	if err != nil {
		return err
	}
	if state := r.start.resume; state != nil && n == r.at.step && !state.Saved.Is(offer.Policy.Digest) {
		return &ResumeError{Point: r.start.dir, Err: fmt.Errorf("trainer holds weights %s, the checkpoint's are %s", offer.Policy.Digest, state.Saved.Digest)}
	}
	b.update(func() { b.offers[n] = offer })
	return nil
}
