package main

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/coordinator"
	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/rollout"
)

// promptOf returns the texts that a recipe shows the policy.
func promptOf(d configs.Data) dataset.Prompt {
	prompt := dataset.OphthaPrompt()
	if d.Prompts == "micro" {
		prompt = dataset.MicroPrompt()
	}
	prompt.ImagesFirst = d.ImagesFirst
	return prompt
}

// setOptions says how a recipe takes the records of a file.
func setOptions(path string, d configs.Data) dataset.Options {
	share := d.MaxBadShare
	if share == 0 {
		share = -1 // dataset: none
	}
	return dataset.Options{Path: path, Prompt: promptOf(d), MaxImages: d.MaxImages, MaxBadShare: share}
}

// openData opens the files of all stages and the held-out questions.
func (r *running) openData(ctx context.Context, store *blob.Store, o *coordinator.Options) error {
	for i, s := range r.config.Stages {
		file, err := recordsFile(ctx, s.Data, r.run.Dir())
		if err != nil {
			return fmt.Errorf("stage %s: %w", s.Name, err)
		}
		set, err := dataset.Open(ctx, store, setOptions(file, r.config.Data))
		if err != nil {
			return fmt.Errorf("stage %s: %w", s.Name, err)
		}
		r.undo.add(set.Close)
		for _, bad := range set.Bad() {
			r.log.Warn("record left out", "stage", s.Name, "error", bad)
		}
		source, err := dataset.NewSource(set, dataset.SourceOptions{Seed: r.config.Seed, Stage: s.Name})
		if err != nil {
			return fmt.Errorf("stage %s: %w", s.Name, err)
		}
		o.Stages[i].Source = source
	}
	if r.config.Eval.Data == "" {
		return nil
	}
	file, err := recordsFile(ctx, r.config.Eval.Data, r.run.Dir())
	if err != nil {
		return fmt.Errorf("eval.data: %w", err)
	}
	questions, err := readQuestions(ctx, store, setOptions(file, r.config.Data), r.config.Eval.Questions)
	if err != nil {
		return fmt.Errorf("eval.data: %w", err)
	}
	o.Eval.Questions = questions
	return nil
}

// readQuestions reads the first n questions of a file, all when n is 0.
func readQuestions(ctx context.Context, store *blob.Store, options dataset.Options, n int) (questions []rollout.Question, err error) {
	set, err := dataset.Open(ctx, store, options)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := set.Close(); err == nil {
			err = closeErr
		}
	}()
	count := set.Len()
	if n > 0 && n < count {
		count = n
	}
	for i := range count {
		q, err := set.Question(ctx, i)
		if err != nil {
			return nil, err
		}
		questions = append(questions, q)
	}
	return questions, nil
}
