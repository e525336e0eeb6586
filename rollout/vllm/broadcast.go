package vllm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/uadt-train/uadt-train/rollout"
)

// TransferError is a refusal or failure at the trainer's side of a broadcast.
type TransferError struct {
	Trainer string // its address
	Route   string
	Status  int
	Type    string // the trainer's name for it
	Message string // the trainer's own words, cut
}

// Error implements error.
func (e *TransferError) Error() string {
	return fmt.Sprintf("trainer %s: %s: status %d: %s: %s", e.Trainer, e.Route, e.Status, e.Type, e.Message)
}

// groupUnknown is the type of a trainer's answer about a group that it has not:
// it was restarted, or gave the group up.
const groupUnknown = "GroupUnknownError"

// membership is a group of a trainer and one server. It ends with the process of
// either.
type membership struct {
	trainer rollout.NCCLOffer
	group   string
	start   float64 // of the server's process, seconds since 1970; 0 when unknown
}

// broadcast is a change of weights that both sides are ready for.
type broadcast struct {
	membership
	policy rollout.Policy
	update json.RawMessage // what the server is told of the weights
}

// enrol makes s ready to take offer by broadcast: it is in a group with the
// trainer, and the trainer has the weights at hand. Nothing has happened to the
// server's weights yet.
func (s *server) enrol(ctx context.Context, offer rollout.Offer) (broadcast, error) {
	seen, err := s.metrics(ctx)
	if err != nil {
		return broadcast{}, err
	}
	m := s.member
	if m.group != "" && m.trainer == *offer.NCCL && m.start != 0 && m.start == seen.start {
		b, err := s.prepare(ctx, m, offer.Policy)
		var refused *TransferError
		switch told := errors.As(err, &refused); {
		case err != nil && !told: // it may have the weights at hand by now
			s.member = membership{}
			return b, s.leave(ctx, m, err)
		case !told || refused.Type != groupUnknown:
			return b, err
		}
	}
	s.member = membership{}
	return s.join(ctx, membership{trainer: *offer.NCCL, start: seen.start}, offer.Policy)
}

// limit is the time that one half of a broadcast is given, in seconds.
func (c *client) limit() float64 { return c.options.TransferTimeout.Seconds() }

// join makes a group of the trainer and all workers of s.
func (s *server) join(ctx context.Context, m membership, policy rollout.Policy) (b broadcast, err error) {
	world, err := s.worldSize(ctx)
	if err != nil {
		return b, err
	}
	var joined struct {
		Group string          `json:"group"`
		Init  json.RawMessage `json:"init_info"`
	}
	request := map[string]any{"server": s.id, "policy": policy, "world_size": world + 1, "seconds": s.limit()}
	if err := s.ask(ctx, m.trainer, "/join", request, &joined); err != nil {
		return b, err
	}
	m.group = joined.Group
	body, err := json.Marshal(map[string]any{"init_info": joined.Init})
	if err == nil {
		err = s.both(ctx, "joining the group of server "+s.id,
			func(ctx context.Context) error {
				_, err := s.post(ctx, "/init_weight_transfer_engine", body)
				if err != nil {
					err = fmt.Errorf("%w (stock vLLM takes part when it was started with --weight-transfer-config)", err)
				}
				return err
			},
			func(ctx context.Context) (err error) {
				b, err = s.prepare(ctx, m, policy)
				return err
			})
	}
	if err != nil {
		return b, s.leave(ctx, m, err)
	}
	s.member = m
	return b, nil
}

// worldSize is the number of workers of a server, each of which takes part.
func (c *client) worldSize(ctx context.Context) (int, error) {
	data, err := c.do(ctx, http.MethodGet, "/get_world_size", nil, probeLimit)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Size int `json:"world_size"`
	}
	if err := json.Unmarshal(data, &answer); err != nil || answer.Size < 1 {
		return 0, &GarbageError{c.id, errors.Join(err, fmt.Errorf("no world_size of 1 or more in %.100q", data))}
	}
	return answer.Size, nil
}

// prepare has the trainer keep the weights of policy for the next send.
func (c *client) prepare(ctx context.Context, m membership, policy rollout.Policy) (broadcast, error) {
	var prepared struct {
		Update json.RawMessage `json:"update_info"`
	}
	request := map[string]any{"group": m.group, "policy": policy, "seconds": c.limit()}
	if err := c.ask(ctx, m.trainer, "/prepare", request, &prepared); err != nil {
		return broadcast{}, err
	}
	update, err := json.Marshal(map[string]any{"update_info": prepared.Update})
	return broadcast{membership: m, policy: policy, update: update}, err
}

// receive brings the weights of b live: pause, take them while the trainer sends
// them, drop every cache, resume. Whatever fails once the update has begun
// leaves a server with a part of the weights. Whatever fails before all of them
// are there ends the group: the trainer would hold what it has at hand for it,
// which for a server that is dead may be for ever.
func (s *server) receive(ctx context.Context, b broadcast) error {
	if _, err := s.post(ctx, "/pause?mode=wait&clear_cache=true", nil); err != nil {
		s.member = membership{}
		return &reloadError{false, s.leave(ctx, b.membership, err)}
	}
	_, err := s.post(ctx, "/start_weight_update", nil)
	if err == nil {
		err = s.both(ctx, fmt.Sprintf("broadcast of policy %s to server %s", b.policy, s.id),
			func(ctx context.Context) error {
				_, err := s.post(ctx, "/update_weights", b.update)
				return err
			},
			func(ctx context.Context) error {
				return s.ask(ctx, b.trainer, "/send", map[string]any{"group": b.group, "seconds": s.limit()}, nil)
			})
	}
	if err != nil {
		s.member = membership{}
		return &reloadError{true, s.leave(ctx, b.membership, err)}
	}
	if _, err := s.post(ctx, "/finish_weight_update", nil); err != nil {
		return &reloadError{true, err}
	}
	return s.freshen(ctx)
}

// both runs the two halves of what needs both sides, and returns the first error
// of either: the other half would wait in vain, so it is cut off.
func (c *client) both(ctx context.Context, what string, server, trainer func(context.Context) error) error {
	ctx, late := context.WithTimeoutCause(ctx, c.options.TransferTimeout, fmt.Errorf("%s took longer than %s", what, c.options.TransferTimeout))
	defer late()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	var first sync.Once
	var err error
	fail := func(e error) {
		first.Do(func() { err = e })
		cut(errOtherHalf)
	}
	var halves sync.WaitGroup
	for _, half := range []func(context.Context) error{server, trainer} {
		halves.Go(func() {
			if e := half(ctx); e != nil {
				fail(e)
			}
		})
	}
	halves.Wait()
	return err
}

// errOtherHalf is why one half of a broadcast is cut off.
var errOtherHalf = errors.New("the other side of the broadcast failed")

// leave tells the trainer that a group is over because of err, so that nothing
// waits there, and returns err.
func (c *client) leave(ctx context.Context, m membership, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.options.ProbeTimeout)
	defer cancel()
	if gone := c.ask(ctx, m.trainer, "/leave", map[string]any{"group": m.group}, nil); gone != nil {
		c.options.Log.Debug("the trainer was not told of a broken group", "server", c.id, "error", gone)
	}
	return err
}

// ask sends one request to the trainer that broadcasts.
func (c *client) ask(ctx context.Context, trainer rollout.NCCLOffer, route string, in, out any) error {
	failed := func(err error) error { return fmt.Errorf("trainer %s: %s: %w", trainer.URL, route, err) }
	body, err := json.Marshal(in)
	if err != nil {
		return failed(err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, trainer.URL+route, bytes.NewReader(body))
	if err != nil {
		return failed(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+trainer.Token)
	response, err := c.http.Do(request)
	if err != nil {
		return failed(cause(ctx, err))
	}
	data, err := readBody(response, probeLimit)
	if err = errors.Join(err, response.Body.Close()); err != nil {
		return failed(cause(ctx, err))
	}
	if response.StatusCode != http.StatusOK {
		var answer struct {
			Error struct {
				Type string `json:"type"`
			} `json:"error"`
		}
		_ = json.Unmarshal(data, &answer) // where it is none, its text says what there is to say
		return &TransferError{trainer.URL, route, response.StatusCode, answer.Error.Type, message(data)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return failed(fmt.Errorf("the answer does not fit the request: %w", err))
	}
	return nil
}
