package coordinator

import (
	"context"
	"errors"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// TestStopPlan checks where a stop ends, by what is being sampled and trained.
func TestStopPlan(t *testing.T) {
	tests := []struct {
		name                                       string
		from, steps, staleness, sampling, training int
		trainTo, sampleTo                          int
	}{
		{"synchronous, while sampling", 0, 9, 0, 4, 3, 4, 4},
		{"synchronous, while training", 0, 9, 0, 4, 4, 4, 4},
		{"one ahead, both at work", 0, 9, 1, 5, 4, 4, 5},
		{"one ahead, trainer behind", 0, 9, 1, 5, 3, 4, 5},
		{"one ahead, trainer waits", 0, 9, 1, 5, 5, 5, 6},
		{"two ahead, trainer has caught up", 0, 9, 2, 5, 4, 4, 6},
		{"near the end", 0, 9, 2, 9, 8, 8, 9},
		{"at the end", 0, 9, 2, 9, 9, 9, 9},
		{"before anything", 0, 9, 2, 0, 0, 0, 0},
		{"in the first batch, ahead", 0, 9, 2, 1, 0, 0, 1},
		{"just resumed", 4, 9, 1, 4, 4, 4, 4},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBoard(test.from, test.steps)
			b.sampling, b.training = test.sampling, test.training
			b.stop(test.staleness, test.steps)
			if b.trainTo != test.trainTo || b.sampleTo != test.sampleTo {
				t.Errorf("train to %d, sample to %d, want %d and %d", b.trainTo, b.sampleTo, test.trainTo, test.sampleTo)
			}
			b.sampling, b.training = test.steps, test.steps
			b.stop(test.staleness, test.steps)
			if b.trainTo != test.trainTo {
				t.Errorf("a second stop moved the end to %d", b.trainTo)
			}
		})
	}
}

// TestOverWaitsForEvaluations: near the end of a stage the batches are durable
// before the evaluations that the checkpoint builds upon are recorded.
func TestOverWaitsForEvaluations(t *testing.T) {
	b := newBoard(0, 8)
	b.sampling, b.training, b.durable, b.evaluated = 8, 7, 8, 5
	if b.over(8) {
		t.Error("over without a stop")
	}
	b.stop(2, 8)
	if b.trainTo != 7 || b.over(8) {
		t.Errorf("trains to %d, over %v; version 6 is not evaluated", b.trainTo, b.over(8))
	}
	b.evaluated = 6
	if !b.over(8) {
		t.Error("not over, though all is durable and recorded")
	}
	b.trainTo = 8
	if b.over(8) {
		t.Error("a stop that trains to the end must not end the sampler early")
	}
}

func TestBoardWaits(t *testing.T) {
	b := newBoard(0, 5)
	done := make(chan error, 1)
	go func() { done <- b.wait(t.Context(), func() bool { return b.durable >= 2 }) }()
	b.update(func() { b.durable = 1 })
	b.update(func() { b.durable = 2; b.offers[1] = rollout.Offer{Path: "x"} })
	if err := <-done; err != nil || b.offer(1).Path != "x" {
		t.Errorf("wait %v, offer %+v", err, b.offer(1))
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if err := b.wait(ctx, func() bool { return false }); !errors.Is(err, why) {
		t.Errorf("wait ended with %v, want the cause", err)
	}
}
