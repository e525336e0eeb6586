package remote

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

type publishBody struct {
	Incarnation   uint64 `json:"incarnation"`
	PolicyVersion int    `json:"policy_version"`
	Transport     string `json:"transport"`
}

type published struct {
	Path   string `json:"path"`
	Digest string `json:"digest"`
	URL    string `json:"url"`
	Token  string `json:"token"`
}

// Publish implements trainer.Keeper, by Options.Weights: rank 0 writes a Hugging
// Face directory or an adapter's, which must be seen by the servers, or holds a
// copy of the weights that it broadcasts to whoever asks for it.
func (t *Trainer) Publish(ctx context.Context, policy rollout.Policy) (rollout.Offer, error) {
	t.order.Lock()
	defer t.order.Unlock()
	fail := func(err error) (rollout.Offer, error) {
		return rollout.Offer{}, fmt.Errorf("publish policy %d.%d: %w", policy.Incarnation, policy.Version, err)
	}
	s, err := t.begun()
	if err != nil {
		return fail(err)
	}
	body := publishBody{Incarnation: policy.Incarnation, PolicyVersion: policy.Version, Transport: string(t.options.Weights)}
	answers, err := t.call(ctx, "publish", s.instance, same(body))
	if err != nil {
		return fail(err)
	}
	var p published
	if err := answers[0].body(&p); err != nil {
		return fail(err)
	}
	offer, err := p.offer(policy, t.options.Weights)
	if err != nil {
		return fail(err)
	}
	if offer.Transport == rollout.ByLoRA {
		offer.Base = s.base
	}
	return offer, nil
}

// offer checks what rank 0 published and makes an offer of it.
func (p published) offer(policy rollout.Policy, by rollout.Transport) (rollout.Offer, error) {
	policy.Digest = p.Digest
	offer := rollout.Offer{Policy: policy, Transport: by}
	if len(p.Digest) != 64 {
		return rollout.Offer{}, fmt.Errorf("%w: published with digest %q", ErrFrame, p.Digest)
	}
	switch by {
	case rollout.ByNCCL:
		if p.URL == "" || p.Token == "" {
			return rollout.Offer{}, fmt.Errorf("%w: published for broadcasts at %q with a token of %d characters", ErrFrame, p.URL, len(p.Token))
		}
		offer.NCCL = &rollout.NCCLOffer{URL: p.URL, Token: p.Token}
	default:
		if !filepath.IsAbs(p.Path) {
			return rollout.Offer{}, fmt.Errorf("%w: published at %q", ErrFrame, p.Path)
		}
		offer.Path = p.Path
	}
	return offer, nil
}

type saveBody struct {
	Path string `json:"path"`
}

// Save implements trainer.Keeper: it returns when every rank has copied its
// state; rank 0 writes the copy below dir, which it must see.
func (t *Trainer) Save(ctx context.Context, dir string) (trainer.Pending, error) {
	t.order.Lock()
	defer t.order.Unlock()
	s, err := t.begun()
	if err != nil {
		return nil, fmt.Errorf("save to %s: %w", dir, err)
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("save to %s: %w", dir, err)
	}
	n := t.nextNumber()
	second := t.expect("save", s.instance, "d", n)
	if _, err := t.numbered(ctx, "save", s.instance, n, same(saveBody{Path: path})); err != nil {
		t.forget(second)
		return nil, fmt.Errorf("save to %s: %w", dir, err)
	}
	return &pending{t: t, second: second, dir: dir}, nil
}

// pending is a checkpoint that rank 0 is writing.
type pending struct {
	t      *Trainer
	second *gathering
	dir    string

	mu    sync.Mutex
	over  bool
	saved trainer.Saved
	err   error
}

// Wait implements trainer.Pending.
func (p *pending) Wait(ctx context.Context) (trainer.Saved, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return p.saved, p.err
	}
	ctx, cancel := context.WithTimeout(ctx, p.t.options.Command)
	defer cancel()
	answers, err := p.t.await(ctx, p.second)
	if ctx.Err() == nil {
		p.t.forget(p.second)
		p.t.tidy(ctx, p.second)
	}
	p.over = true
	if err == nil {
		err = answers[0].body(&p.saved)
	}
	if err != nil {
		p.saved, p.err = trainer.Saved{}, fmt.Errorf("save to %s: %w", p.dir, err)
	}
	return p.saved, p.err
}
