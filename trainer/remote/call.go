package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// gathering collects one answer of every rank.
type gathering struct {
	command  string
	instance string
	keys     []string // [ranks] of the answers
	sent     []string // [ranks] of the commands
	later    bool     // second answers: the ranks go on meanwhile
	arrived  chan answer
	started  time.Time
}

// content makes what a rank is sent.
type content func(rank int) (body any, tensors map[string]safetensors.Tensor, err error)

// same sends all ranks one body.
func same(body any) content {
	return func(int) (any, map[string]safetensors.Tensor, error) { return body, nil, nil }
}

// expect registers the answers to command number n; suffix tells second
// answers from first ones.
func (t *Trainer) expect(command, instance, suffix string, n int) *gathering {
	g := &gathering{
		command: command, instance: instance, later: suffix != "", arrived: make(chan answer, t.options.Ranks), started: time.Now(),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for rank := range t.options.Ranks {
		key := fmt.Sprintf("%d.%s-%d%s", rank, t.session, n, suffix)
		g.keys = append(g.keys, key)
		t.waits[key] = g
	}
	return g
}

// forget takes back what expect registered.
func (t *Trainer) forget(g *gathering) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, key := range g.keys {
		delete(t.waits, key)
	}
}

// receive takes in an answer.
func (t *Trainer) receive(e bus.Entry) error {
	t.mu.Lock()
	g := t.waits[e.Key]
	delete(t.waits, e.Key)
	t.mu.Unlock()
	if g == nil {
		return nil // nobody waits for it any more
	}
	var rank int
	if _, err := fmt.Sscanf(e.Key, "%d.", &rank); err != nil {
		return nil
	}
	a, err := decodeAnswer(e.Message.Data)
	if err != nil {
		a = answer{Error: &failure{Type: "unreadable answer", Message: err.Error()}}
	}
	a.rank = rank
	g.arrived <- a // has room for one of every rank
	return nil
}

// nextNumber counts commands.
func (t *Trainer) nextNumber() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number++
	return t.number
}

// call has every rank of instance carry out a command and returns their
// answers, by rank.
func (t *Trainer) call(ctx context.Context, name, instance string, what content) ([]answer, error) {
	return t.numbered(ctx, name, instance, t.nextNumber(), what)
}

// numbered is call for a number that was taken before.
func (t *Trainer) numbered(ctx context.Context, name, instance string, n int, what content) ([]answer, error) {
	ctx, cancel := context.WithTimeout(ctx, t.options.Command)
	defer cancel()
	g := t.expect(name, instance, "", n)
	defer t.forget(g)
	var messages []bus.Message
	for rank := range t.options.Ranks {
		body, tensors, err := what(rank)
		if err != nil {
			return nil, err
		}
		m, err := encodeCommand(command{Version: version, Instance: instance, Body: body}, tensors)
		if err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	for rank, m := range messages {
		key := fmt.Sprintf("%d.%s-%d.%s", rank, t.session, n, name)
		if _, err := t.commands.Create(ctx, key, m); err != nil {
			return nil, t.breakStage(instance, fmt.Errorf("sending %s to trainer rank %d: %w", name, rank, err))
		}
		g.sent = append(g.sent, key)
	}
	answers, err := t.await(ctx, g)
	t.tidy(ctx, g)
	return answers, err
}

// await waits for the answers of all ranks. The first error, in the order of
// ranks, is returned; one after which the state of the ranks is not known ends
// the stage.
func (t *Trainer) await(ctx context.Context, g *gathering) ([]answer, error) {
	answers := make([]answer, t.options.Ranks)
	ticker := time.NewTicker(t.options.Silence / 8)
	defer ticker.Stop()
	var failed time.Time // when the first error came
	for left := t.options.Ranks; left > 0; {
		select {
		case a := <-g.arrived:
			answers[a.rank] = a
			left--
			if a.Error == nil {
				continue
			}
			if a.Error.fatal() {
				return nil, t.breakStage(g.instance, &LostError{Rank: a.rank, Instance: g.instance, Why: fmt.Sprintf("%s failed: %s: %s", g.command, a.Error.Type, a.Error.Message)})
			}
			if failed.IsZero() {
				failed = time.Now()
			}
			continue
		case <-t.local.exits():
		case <-ticker.C:
		case <-ctx.Done():
			return nil, t.gaveUp(ctx, g, left)
		}
		if len(g.arrived) > 0 {
			continue // an answer counts, even if its sender ended after it
		}
		t.mu.Lock()
		err := t.lost(g.instance)
		t.mu.Unlock()
		if err == nil && !failed.IsZero() && time.Since(failed) > t.options.Silence {
			// The others may wait in a collective for the rank that refused.
			err = &LostError{Rank: firstFailed(answers), Instance: g.instance, Why: g.command + " failed on it and hangs on another"}
		}
		if err != nil {
			return nil, t.breakStage(g.instance, err)
		}
	}
	return answers, t.verdict(answers, g)
}

// verdict is the error of the first rank that has one. If a command that
// changes ranks succeeded on some of them only, the set is not one any more.
func (t *Trainer) verdict(answers []answer, g *gathering) error {
	first := firstFailed(answers)
	if first < 0 {
		return nil
	}
	failures := 0
	for _, a := range answers {
		if a.Error != nil {
			failures++
		}
	}
	if failures < len(answers) && (g.command == "begin" || g.command == "step") {
		return t.breakStage(g.instance, &LostError{Rank: first, Instance: g.instance,
			Why: fmt.Sprintf("%s failed on it alone: %s", g.command, answers[first].Error.Message)})
	}
	return answers[first].Error.typed(first, g.command)
}

func firstFailed(answers []answer) int {
	for rank, a := range answers {
		if a.Error != nil {
			return rank
		}
	}
	return -1
}

// gaveUp is the error of a wait that its context ended. What the ranks did
// then is not known, so the stage is over.
func (t *Trainer) gaveUp(ctx context.Context, g *gathering, left int) error {
	err := context.Cause(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = &TimeoutError{What: fmt.Sprintf("%s on %d of %d trainer ranks", g.command, left, t.options.Ranks),
			Waited: time.Since(g.started), Look: t.look(), Err: ctx.Err()}
	}
	if g.later {
		return err
	}
	return t.breakStage(g.instance, err)
}

// breakStage makes err the answer to everything until the next Begin.
func (t *Trainer) breakStage(instance string, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stage != nil && t.stage.instance == instance && t.stage.broken == nil {
		t.stage.broken = err
	}
	return err
}

// tidy deletes commands and answers that nobody needs any more. What stays
// behind costs space only, and goes with the incarnation.
func (t *Trainer) tidy(ctx context.Context, g *gathering) {
	for _, keys := range [][]string{g.sent, g.keys} {
		log := t.answers
		if len(keys) > 0 && strings.Count(keys[0], ".") == 2 {
			log = t.commands
		}
		for _, key := range keys {
			if err := log.Purge(ctx, key); err != nil {
				t.options.Log.Debug("purging the bus", "key", key, "error", err)
				return
			}
		}
	}
}
