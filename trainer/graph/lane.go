package graph

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
)

// lane is one goroutine's graphs and its sum of gradients.
type lane struct {
	forward *network // log-probabilities only
	train   *network // with loss and gradients
	grads   []float32
}

// lanes run the chunks of a batch: chunk i on lane i modulo their number. The
// number is part of the arithmetic (it fixes the order of sums) and so never
// follows the machine.
type lanes struct {
	config  qwenvl.Config
	weights *layoutOfWeights
	train   []bool
	list    []*lane
}

// newLanes makes count lanes without graphs; these come with the first chunk.
func newLanes(config qwenvl.Config, weights *layoutOfWeights, train []bool, count int) *lanes {
	l := &lanes{config: config, weights: weights, train: train}
	for range count {
		l.list = append(l.list, &lane{grads: make([]float32, weights.size)})
	}
	return l
}

// ready returns the lane's network for chunk c, with or without gradients,
// building it when it is missing or too small, and reading values.
func (l *lanes) ready(at *lane, c *chunk, values []float32, gradients bool) (*network, error) {
	slot, train := &at.forward, make([]bool, len(l.train))
	if gradients {
		slot, train = &at.train, l.train
	}
	unit := l.config.Vision.MergeSize * l.config.Vision.MergeSize
	if need := c.sizes(unit); *slot == nil || !(*slot).cap.holds(need) {
		have := sizes{}
		if *slot != nil {
			have = (*slot).cap
			*slot = nil // let its memory go before the larger one is made
		}
		made, err := newNetwork(l.config, l.weights, train, have.grow(need))
		if err != nil {
			return nil, err
		}
		*slot = made
	}
	if err := (*slot).bind(values); err != nil {
		return nil, err
	}
	return *slot, nil
}

// each runs work on every chunk, each lane in chunk order, and joins the
// errors. It returns when all lanes have stopped.
func (l *lanes) each(ctx context.Context, chunks []*chunk, work func(at *lane, c *chunk) error) error {
	var group sync.WaitGroup
	errs := make([]error, len(l.list))
	for i, at := range l.list {
		group.Go(func() {
			defer func() {
				if r := recover(); r != nil { // a size that does not fit is a bug, and must not take the run down
					errs[i] = fmt.Errorf("graph lane %d: %v", i, r)
				}
			}()
			for j := i; j < len(chunks) && errs[i] == nil; j += len(l.list) {
				if errs[i] = ctx.Err(); errs[i] == nil && len(chunks[j].traces) > 0 {
					errs[i] = work(at, chunks[j])
				}
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// logprobs runs the chunks forward with the given weights and hands every
// chunk's [M][2] log-probabilities and entropies to sink, from several
// goroutines. The slice is valid during the call.
func (l *lanes) logprobs(ctx context.Context, chunks []*chunk, values []float32, h head, sink func(c *chunk, out []float32) error) error {
	return l.each(ctx, chunks, func(at *lane, c *chunk) error {
		n, err := l.ready(at, c, values, false)
		if err != nil {
			return err
		}
		if err := n.run(c, h, nil); err != nil {
			return err
		}
		return sink(c, n.logprobs())
	})
}

// task is what is differentiated.
type task struct {
	head head
	loss lossFunc
}

// gradients runs the chunks with the loss and sets sum to the gradient of its
// total.
func (l *lanes) gradients(ctx context.Context, chunks []*chunk, values []float32, of task, sum []float32) error {
	for _, at := range l.list {
		clear(at.grads)
	}
	err := l.each(ctx, chunks, func(at *lane, c *chunk) error {
		n, err := l.ready(at, c, values, true)
		if err != nil {
			return err
		}
		if err := n.run(c, of.head, of.loss); err != nil {
			return err
		}
		return n.addGradients(at.grads)
	})
	if err != nil {
		return err
	}
	copy(sum, l.list[0].grads)
	for _, at := range l.list[1:] {
		for i, v := range at.grads {
			sum[i] += v
		}
	}
	return nil
}
