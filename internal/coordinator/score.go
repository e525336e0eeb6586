package coordinator

import (
	"context"
	"math"
	"sync"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
)

// score scores the traces of group at the same time, each within its limit. A
// score that fails or does not come is missing, never 0. It fails only when
// ctx ends.
func (r *ring) score(ctx context.Context, q rollout.Question, group rollout.Group) ([]reward.Score, error) {
	scores := make([]reward.Score, len(group.Traces))
	var wg sync.WaitGroup
	for i, trace := range group.Traces {
		if err := r.atReward.take(ctx); err != nil {
			wg.Wait()
			return nil, err
		}
		wg.Go(func() {
			defer r.atReward.give()
			scores[i] = r.scoreTrace(ctx, q, trace)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return scores, nil
}

func (r *ring) scoreTrace(ctx context.Context, q rollout.Question, trace rollout.Trace) reward.Score {
	limited, cancel := context.WithTimeout(ctx, r.o.Limits.Reward)
	defer cancel()
	score, err := r.o.Parts.Scorer.Score(limited, q, trace)
	switch {
	case err != nil && limited.Err() != nil:
		return reward.Score{Missing: true, Answer: reward.Answer{Reason: reward.CodeTimeout}}
	case err != nil || math.IsNaN(score.Total) || math.IsInf(score.Total, 0):
		return reward.Score{Missing: true, Answer: reward.Answer{Reason: reward.CodePartFailed}}
	}
	return score
}

// zeroVariance says whether the scored rewards of a group carry no signal:
// fewer than two of them, or a standard deviation (n-1) below grpo.min_std.
func (r *ring) zeroVariance(scores []reward.Score) bool {
	var rewards []float64
	for _, s := range scores {
		if !s.Missing {
			rewards = append(rewards, s.Total)
		}
	}
	return len(rewards) < 2 || spread(rewards) < r.o.RL.Advantage.MinStd
}
