package main

import (
	"encoding/json"
	"fmt"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/trainer"
)

// nativeFamily is the model type that the program can tokenise, serve and train
// by itself.
const nativeFamily = "qwen2_5_vl"

// family is what a run must know of a model before anything opens it.
type family struct {
	kind string  // model_type of config.json
	pads []int32 // ids that stand for images and videos
}

// readFamily reads config.json of a model directory.
func readFamily(dir string) (family, error) {
	model, err := checkpoint.Open(dir)
	if err != nil {
		return family{}, err
	}
	defer model.Close() //nolint:errcheck // read-only
	var c struct {
		ModelType string `json:"model_type"`
		Image     *int32 `json:"image_token_id"`
		Video     *int32 `json:"video_token_id"`
	}
	if err := json.Unmarshal(model.Config(), &c); err != nil {
		return family{}, fmt.Errorf("%s: config.json: %w", dir, err)
	}
	f := family{kind: c.ModelType}
	for _, id := range []*int32{c.Image, c.Video} {
		if id != nil {
			f.pads = append(f.pads, *id)
		}
	}
	if len(f.pads) == 0 {
		return family{}, fmt.Errorf("%s: config.json is of a %s and names no image_token_id: not a vision-language model", dir, c.ModelType)
	}
	return f, nil
}

// internFamily is the other one that the PyTorch trainer knows.
const internFamily = "internvl"

// check refuses recipes whose parts cannot work with the family.
func (f family) check(c configs.Config) error {
	if f.kind == nativeFamily {
		return nil
	}
	if f.kind != internFamily {
		return usagef("model.path: %s is a %s; want a %s or, in the -hf form, an %s", c.Model.Path, f.kind, nativeFamily, internFamily)
	}
	if c.Trainer.Backend != backendPyTorch {
		return usagef("trainer.backend: %s trains %s only, and %s is a %s; want %s", c.Trainer.Backend, nativeFamily, c.Model.Path, f.kind, backendPyTorch)
	}
	if hasKind(c, trainer.RL) && c.Rollout.Workers > 0 && len(c.Rollout.Servers) == 0 {
		return usagef("rollout.servers: is empty, and the native engine serves %s only; %s is a %s", nativeFamily, c.Model.Path, f.kind)
	}
	return nil
}
