package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/internal/encode"
	"github.com/uadt-train/uadt-train/internal/phantom"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/rollout"
)

// rowFacts is what the records of a file ask of a context: the longest of those
// that were looked at.
type rowFacts struct {
	looked      int
	prompt      int // tokens of the longest prompt, images included
	imageTokens int // of them images'
	images      int // most images of a record
	// bound says that tokens are an upper bound, which no prompt need reach.
	bound bool
}

// surveyed is how many records of a file are turned into tokens.
const surveyed = 32

// checkRecords reads every record, and turns some into tokens.
func checkRecords(key, path string) func(*doctor, context.Context) []finding {
	name := "data " + key
	return func(d *doctor, ctx context.Context) []finding {
		store, remove, err := scratchStore()
		if err != nil {
			return []finding{check(name, "", err)}
		}
		defer remove() //nolint:errcheck // a temporary folder
		file, made := path, ""
		if isPhantom(path) {
			dir, err := os.MkdirTemp("", "uadt-phantoms-")
			if err != nil {
				return []finding{check(name, "", err)}
			}
			defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
			if file, err = samplePhantoms(ctx, path, dir); err != nil {
				return []finding{check(name, "", err)}
			}
			made = path + ": made when the run starts; of a sample, "
		}
		options := setOptions(file, d.c.Data)
		options.NoIndexFile = true
		set, err := dataset.Open(ctx, store, options)
		if err != nil {
			return []finding{check(name, "", err)}
		}
		defer set.Close() //nolint:errcheck // read-only
		found := fmt.Sprintf("%s: %d records, %d left out", path, set.Len(), len(set.Bad()))
		if made != "" {
			found = fmt.Sprintf("%s%d records", made, set.Len())
		}
		if d.model.kind == "" {
			return []finding{check(name, found, nil)}
		}
		rows, err := d.survey(ctx, set, store)
		if err != nil {
			return []finding{check(name, "", fmt.Errorf("%s: %w", path, err))}
		}
		d.rows[key] = rows
		return []finding{check(name, found+", "+rows.String(), nil)}
	}
}

// String says what the survey found.
func (r rowFacts) String() string {
	if r.bound {
		return fmt.Sprintf("prompts of at most %d tokens (%d of them images') in %d records", r.prompt, r.imageTokens, r.looked)
	}
	return fmt.Sprintf("longest prompt %d tokens (%d of them images') in %d records", r.prompt, r.imageTokens, r.looked)
}

// samplePhantoms makes some of a set of phantoms in dir.
func samplePhantoms(ctx context.Context, path, dir string) (string, error) {
	split, o, err := parsePhantom(path)
	if err != nil {
		return "", err
	}
	for _, n := range []*int{&o.Captions, &o.SFT, &o.Train, &o.InDomain, &o.OutOfDomain} {
		*n = min(*n, surveyed)
	}
	if _, err := phantom.Write(ctx, dir, o); err != nil {
		return "", err
	}
	return filepath.Join(dir, split+".json"), nil
}

// survey turns records, spread over the file, into prompts.
func (d *doctor) survey(ctx context.Context, set *dataset.Set, store *blob.Store) (rowFacts, error) {
	measure, err := d.measure(store)
	if err != nil {
		return rowFacts{}, err
	}
	r := rowFacts{looked: min(surveyed, set.Len()), bound: d.model.kind != nativeFamily}
	for i := range r.looked {
		q, err := set.Question(ctx, i*set.Len()/r.looked)
		if err != nil {
			return r, err
		}
		prompt, images, err := measure(ctx, q)
		if err != nil {
			return r, err
		}
		if prompt > r.prompt {
			r.prompt, r.imageTokens = prompt, images
		}
		r.images = max(r.images, len(q.Images()))
	}
	if r.looked < set.Len() {
		r.images = d.c.Data.MaxImages // as far as is known
	}
	return r, nil
}

// measure returns what counts the tokens of a question's prompt, and those of
// its images among them: exactly for the family that this program tokenises, an
// upper bound for others, whose template adds some tokens to a turn and whose
// processor decides on the number of tiles.
func (d *doctor) measure(store *blob.Store) (func(context.Context, rollout.Question) (prompt, images int, err error), error) {
	dir := d.c.Model.Path
	if d.model.kind == nativeFamily {
		encoder, err := encode.Open(dir, d.c.Model.MaxPixels, store)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, q rollout.Question) (int, int, error) {
			ids, err := encoder.Prompt(ctx, q.Messages)
			images := 0
			for _, id := range ids {
				if id == d.model.pads[0] {
					images++
				}
			}
			return len(ids), images, err
		}, nil
	}
	length := func(text string) int { return len(text) } // a token is a byte at least
	if words, err := tokenizer.Open(dir); err == nil {   // this program knows not every tokenizer
		length = func(text string) int { return len(words.Encode(text)) }
	}
	tiles := mostTiles(dir)
	return func(_ context.Context, q rollout.Question) (int, int, error) {
		const turn = 16 // marks of a turn, and the generation prompt
		prompt := turn
		for _, message := range q.Messages {
			prompt += turn
			for _, part := range message.Parts {
				prompt += length(part.Text)
			}
		}
		const marks = 3 // around an image
		images := len(q.Images()) * tiles * d.model.tileTokens
		return prompt + images + marks*len(q.Images()), images, nil
	}, nil
}

// mostTiles is how many tiles the processor of a directory may cut an image
// into, the thumbnail included; InternVL's own default is 12.
func mostTiles(dir string) int {
	const most = 12
	for _, name := range []string{"processor_config.json", "preprocessor_config.json"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		var p struct {
			Most  int `json:"max_patches"`
			Image struct {
				Most int `json:"max_patches"`
			} `json:"image_processor"`
		}
		if err := json.Unmarshal(data, &p); err == nil && max(p.Most, p.Image.Most) > 0 {
			return max(p.Most, p.Image.Most) + 1
		}
	}
	return most + 1
}

// wantsContext is how long a prompt and a response of the rl stages and of the
// evaluation may be together, and how many images a prompt has; bound says that
// the length is an upper bound, which no prompt need reach.
func (d *doctor) wantsContext() (tokens, images int, bound bool) {
	keys := []string{evaluation}
	for _, s := range d.c.Stages {
		if s.Kind == "rl" {
			keys = append(keys, s.Name)
		}
	}
	for _, key := range keys {
		r := d.rows[key]
		tokens, images, bound = max(tokens, r.prompt), max(images, r.images), bound || r.bound
	}
	return tokens + d.c.Rollout.MaxTokens, images, bound
}

// list joins problems.
func list(texts []string) string { return strings.Join(texts, ", ") }
