package main

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// promptEncoder turns messages into the ids of a prompt.
type promptEncoder interface {
	Prompt(ctx context.Context, messages []rollout.Message) ([]int32, error)
}

// samePrompts drops groups whose prompt is other tokens to the server than to
// us: of another tokenizer, chat template or pixel budget. They would be trained
// without a complaint as long as every id exists and the images' tokens add up.
type samePrompts struct {
	rollout.Fleet
	encoder promptEncoder
}

// Sample implements rollout.Fleet.
func (f samePrompts) Sample(ctx context.Context, job rollout.Job) (rollout.Group, error) {
	group, err := f.Fleet.Sample(ctx, job)
	if err != nil {
		return group, err
	}
	want, err := f.encoder.Prompt(ctx, job.Question.Messages)
	if err == nil {
		err = comparePrompts(group.PromptTokens, want)
	}
	switch {
	case err == nil:
		return group, nil
	case ctx.Err() != nil:
		return rollout.Group{}, context.Cause(ctx)
	}
	return rollout.Group{}, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonEncoding, Err: fmt.Errorf("server %s: %w", group.Server, err)}
}

// comparePrompts names the first difference.
func comparePrompts(theirs, ours []int32) error {
	const hint = "its tokenizer, chat template or pixel budget is not that of model.path"
	for i := range min(len(theirs), len(ours)) {
		if theirs[i] != ours[i] {
			return fmt.Errorf("token %d of the prompt is %d to it and %d to us: %s", i, theirs[i], ours[i], hint)
		}
	}
	if len(theirs) != len(ours) {
		return fmt.Errorf("the prompt has %d tokens to it and %d to us: %s", len(theirs), len(ours), hint)
	}
	return nil
}
