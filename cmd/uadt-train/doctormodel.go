package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/trainer"
)

// modelFacts is what the headers of a checkpoint say. The zero value stands for
// one that could not be read.
type modelFacts struct {
	family
	tensors    int
	parameters map[trainer.ModelPart]int64
	text       stackSizes
	vision     stackSizes
	vocabulary int
	context    int // max_position_embeddings, tokens
	imageRows  int // rows of the vision tower for one image token
	tileTokens int // tokens of a tile; 0 for families that do not cut images
}

// stackSizes are those of a stack of layers.
type stackSizes struct{ layers, width, inner int }

// all is the number of parameters.
func (f modelFacts) all() (n int64) {
	for _, part := range f.parameters {
		n += part
	}
	return n
}

// trained is the number of those that are not frozen.
func (f modelFacts) trained(frozen []trainer.ModelPart) int64 {
	n := f.all()
	for _, part := range frozen {
		n -= f.parameters[part]
	}
	return n
}

// readModelFacts reads the headers of a model directory.
func readModelFacts(dir string) (modelFacts, error) {
	kind, err := readFamily(dir)
	if err != nil {
		return modelFacts{}, err
	}
	model, err := checkpoint.Open(dir)
	if err != nil {
		return modelFacts{}, err
	}
	defer model.Close() //nolint:errcheck // read-only
	f := modelFacts{family: kind, parameters: map[trainer.ModelPart]int64{}}
	for _, name := range model.Names() {
		_, shape, _ := model.Info(name)
		n := int64(1)
		for _, size := range shape {
			n *= int64(size)
		}
		f.tensors++
		f.parameters[partOf(name)] += n
	}
	return f, f.readSizes(model.Config(), dir)
}

// partOf is the freezable part that a tensor belongs to, by the names that
// Qwen2.5-VL and InternVL have in files.
func partOf(name string) trainer.ModelPart {
	switch {
	case strings.Contains(name, "visual.merger"), strings.Contains(name, "multi_modal_projector"):
		return trainer.Projector
	case strings.Contains(name, "visual."), strings.Contains(name, "vision_tower"):
		return trainer.Vision
	}
	return trainer.Language
}

// textSizes are the keys of a text model in config.json.
type textSizes struct {
	Layers     int `json:"num_hidden_layers"`
	Width      int `json:"hidden_size"`
	Inner      int `json:"intermediate_size"`
	Vocabulary int `json:"vocab_size"`
	Context    int `json:"max_position_embeddings"`
}

// readSizes reads config.json. The text model's keys are at the top in files of
// Qwen2.5-VL that transformers 4 wrote, below text_config in all others.
func (f *modelFacts) readSizes(config []byte, dir string) error {
	var all struct {
		textSizes
		Text   *textSizes `json:"text_config"`
		Vision struct {
			Depth  int `json:"depth"`
			Layers int `json:"num_hidden_layers"`
			Width  int `json:"hidden_size"`
			Inner  int `json:"intermediate_size"`
			Merge  int `json:"spatial_merge_size"`
		} `json:"vision_config"`
		Tile       int     `json:"image_seq_length"`
		Downsample float64 `json:"downsample_ratio"`
	}
	if err := json.Unmarshal(config, &all); err != nil {
		return fmt.Errorf("%s: config.json: %w", dir, err)
	}
	text := all.textSizes
	if all.Text != nil && all.Text.Width > 0 {
		text = *all.Text
	}
	f.text = stackSizes{text.Layers, text.Width, text.Inner}
	f.vocabulary, f.context = text.Vocabulary, text.Context
	f.vision = stackSizes{max(all.Vision.Depth, all.Vision.Layers), all.Vision.Width, all.Vision.Inner}
	f.imageRows = all.Vision.Merge * all.Vision.Merge
	if f.kind == internFamily {
		f.tileTokens = all.Tile
		if all.Downsample > 0 {
			f.imageRows = int(1/(all.Downsample*all.Downsample) + 0.5)
		}
	}
	return nil
}

// checkModel reads the headers, and opens what turns text into tokens.
func (d *doctor) checkModel(context.Context) []finding {
	dir := d.c.Model.Path
	facts, err := readModelFacts(dir)
	if err != nil {
		return []finding{check("model", "", err)}
	}
	found := fmt.Sprintf("%s: %s, %d tensors, %s parameters (vision %s, projector %s, language %s), context %d tokens",
		dir, facts.kind, facts.tensors, count(facts.all()), count(facts.parameters[trainer.Vision]),
		count(facts.parameters[trainer.Projector]), count(facts.parameters[trainer.Language]), facts.context)
	if facts.kind != nativeFamily && facts.kind != internFamily {
		return []finding{{Check: "model", Found: found, Want: nativeFamily + " or " + internFamily}}
	}
	if facts.kind == nativeFamily { // others are tokenised by the trainer's process
		if _, err := tokenizer.Open(dir); err != nil {
			return []finding{check("model", "", err)}
		}
		if _, err := tokenizer.OpenTemplate(dir); err != nil {
			return []finding{check("model", "", err)}
		}
	}
	d.model = facts
	return []finding{check("model", found, nil)}
}

// count writes a number of parameters.
func count(n int64) string {
	switch {
	case n >= 1e8:
		return fmt.Sprintf("%.2f B", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.2f M", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f k", float64(n)/1e3)
}
