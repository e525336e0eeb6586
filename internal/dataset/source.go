package dataset

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/uadt-train/uadt-train/rollout"
)

// Questions is a list of questions read on demand; a Set is one.
type Questions interface {
	Len() int
	// Question reads question i, 0 <= i < Len; a *BadRecord may be skipped.
	Question(ctx context.Context, i int) (rollout.Question, error)
	Digest() string
}

// Source draws the questions of a list epoch after epoch, each epoch in its
// own order, for ever. It is used from one goroutine at a time.
type Source struct {
	questions Questions
	options   SourceOptions
	order     []int32 // of the current epoch
	epoch     int
	next      int // position in order
	skipped   int
}

// SourceOptions says in which order questions are drawn.
type SourceOptions struct {
	// Seed of the order; it is no other seed's stream.
	Seed int64
	// Stage tells the orders of stages apart.
	Stage string
	// InOrder keeps file order in every epoch.
	InOrder bool
}

// NewSource returns a source at the start of epoch 0. The list must not be
// empty.
func NewSource(questions Questions, o SourceOptions) (*Source, error) {
	if questions.Len() == 0 {
		return nil, fmt.Errorf("dataset: %w: a source needs at least one question", ErrFields)
	}
	s := &Source{questions: questions, options: o}
	s.begin(0)
	return s, nil
}

// begin lays out the order of an epoch: a Fisher-Yates shuffle whose stream
// depends on seed, stage and epoch alone.
func (s *Source) begin(epoch int) {
	s.epoch, s.next = epoch, 0
	if s.order == nil {
		s.order = make([]int32, s.questions.Len())
	}
	for i := range s.order {
		s.order[i] = int32(i)
	}
	if s.options.InOrder {
		return
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "uadt-order-1|%d|%d:%s|%d",
		s.options.Seed, len(s.options.Stage), s.options.Stage, epoch))
	r := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum[:8]), binary.LittleEndian.Uint64(sum[8:16])))
	r.Shuffle(len(s.order), func(i, j int) { s.order[i], s.order[j] = s.order[j], s.order[i] })
}

// Next returns the next question and its epoch. A record that has gone bad
// since the check is skipped and counted; a whole epoch of them is an error.
func (s *Source) Next(ctx context.Context) (rollout.Question, int, error) {
	var last error
	for range s.order {
		if s.next == len(s.order) {
			s.begin(s.epoch + 1)
		}
		q, err := s.questions.Question(ctx, int(s.order[s.next]))
		var bad *BadRecord
		if err != nil && !errors.As(err, &bad) {
			return rollout.Question{}, 0, err // the cursor stays: the draw may be made again
		}
		s.next++
		if err == nil {
			return q, s.epoch, nil
		}
		s.skipped++
		last = err
	}
	return rollout.Question{}, 0, fmt.Errorf("dataset: none of %d questions can be read any more: %w", len(s.order), last)
}

// Skipped counts the records that went bad after the check.
func (s *Source) Skipped() int { return s.skipped }

// position is the state of a source.
type position struct {
	Epoch   int    `json:"epoch"`
	Next    int    `json:"next"`
	Skipped int    `json:"skipped"`
	Len     int    `json:"len"`
	Digest  string `json:"digest"`
	Seed    int64  `json:"seed"`
	Stage   string `json:"stage"`
	InOrder bool   `json:"in_order,omitempty"`
}

// State returns the position of the cursor with what it is a position in.
func (s *Source) State() ([]byte, error) {
	return json.Marshal(position{s.epoch, s.next, s.skipped, len(s.order), s.questions.Digest(), s.options.Seed, s.options.Stage, s.options.InOrder})
}

// Restore moves the cursor to a position that State returned. It refuses the
// position of another list, seed or stage: the order would be another one.
func (s *Source) Restore(state []byte) error {
	var p position
	if err := json.Unmarshal(state, &p); err != nil {
		return fmt.Errorf("dataset: cursor: %w: %w", ErrFormat, err)
	}
	want := position{p.Epoch, p.Next, p.Skipped, len(s.order), s.questions.Digest(), s.options.Seed, s.options.Stage, s.options.InOrder}
	if p != want {
		return fmt.Errorf("dataset: cursor: %w: position in %d questions of digest %.12s with seed %d, stage %q, in order %t, have %d of %.12s with %d, %q, %t",
			ErrFields, p.Len, p.Digest, p.Seed, p.Stage, p.InOrder, want.Len, want.Digest, want.Seed, want.Stage, want.InOrder)
	}
	if p.Epoch < 0 || p.Next < 0 || p.Next > len(s.order) || p.Skipped < 0 {
		return fmt.Errorf("dataset: cursor: %w: epoch %d, next %d of %d", ErrFormat, p.Epoch, p.Next, len(s.order))
	}
	s.begin(p.Epoch)
	s.next, s.skipped = p.Next, p.Skipped
	return nil
}
