package internvl

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// The tokens between which, and by which, the family shows images. videoToken
// is none of the original's: transformers' processor needs its name.
const (
	startImage = "<img>"
	endImage   = "</img>"
	imageToken = "<IMG_CONTEXT>"
	videoToken = "<video>"
)

// maxAdded bounds the added tokens of a tokenizer_config.json.
const maxAdded = 1 << 16

// words is the vocabulary of a checkpoint.
type words struct {
	json      []byte // tokenizer.json
	made      bool   // from vocab.json and merges.txt
	maxLength int
	added     []tokenizer.Added
	ids       map[string]int32
}

// wordsConfig is the part of the original's tokenizer_config.json that is used.
type wordsConfig struct {
	Class     string                          `json:"tokenizer_class"`
	MaxLength float64                         `json:"model_max_length"`
	Added     map[string]tokenizer.AddedEntry `json:"added_tokens_decoder"`
}

// readWords reads the tokenizer: tokenizer.json, or the files of Qwen2's old
// form. vocab is the number of rows of the embedding.
func readWords(model *checkpoint.Model, vocab int) (words, error) {
	text, err := model.File("tokenizer_config.json")
	if err != nil {
		return words{}, err
	}
	w, added, err := parseWordsConfig(text)
	if err != nil {
		return words{}, fmt.Errorf("%s: tokenizer_config.json: %w", model.Dir(), err)
	}
	w.json, err = model.File(tokenizer.File)
	if errors.Is(err, os.ErrNotExist) {
		w.made = true
		w.json, err = makeWords(model, added)
	}
	if err != nil {
		return words{}, err
	}
	if err := w.complete(vocab); err != nil {
		return words{}, fmt.Errorf("%s: %w", model.Dir(), err)
	}
	return w, nil
}

// parseWordsConfig reads a tokenizer_config.json.
func parseWordsConfig(text []byte) (w words, added []tokenizer.Added, err error) {
	var c wordsConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return w, nil, err
	}
	if c.Class != "Qwen2Tokenizer" && c.Class != "Qwen2TokenizerFast" {
		return w, nil, fmt.Errorf("%w: tokenizer_class %q, want Qwen2Tokenizer", ErrUnsupported, c.Class)
	}
	if c.MaxLength < 1 || c.MaxLength > 1<<30 {
		c.MaxLength = 1 << 30 // transformers writes 1e30 for no limit
	}
	w.maxLength = int(c.MaxLength)
	if len(c.Added) > maxAdded {
		return w, nil, fmt.Errorf("%d added tokens, at most %d are read", len(c.Added), maxAdded)
	}
	for key, a := range c.Added {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil {
			return w, nil, fmt.Errorf("added_tokens_decoder: %q is no token id", key)
		}
		if a.LStrip || a.RStrip || a.SingleWord || a.Normalized {
			return w, nil, fmt.Errorf("%w: added token %q has lstrip, rstrip, single_word or normalized", ErrUnsupported, a.Content)
		}
		added = append(added, tokenizer.Added{ID: int32(id), Content: a.Content, Special: a.Special})
	}
	sortAdded(added)
	return w, added, nil
}

// makeWords makes a tokenizer.json from vocab.json, merges.txt and the added
// tokens.
func makeWords(model *checkpoint.Model, added []tokenizer.Added) ([]byte, error) {
	vocab, err := model.File("vocab.json")
	if err == nil {
		var merges []byte
		if merges, err = model.File("merges.txt"); err == nil {
			return makeFrom(model, vocab, merges, added)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: neither %s nor both of vocab.json and merges.txt are there: %w", model.Dir(), tokenizer.File, err)
	}
	return nil, err
}

func makeFrom(model *checkpoint.Model, vocab, merges []byte, added []tokenizer.Added) ([]byte, error) {
	if len(added) == 0 {
		return nil, fmt.Errorf("%w: %s: tokenizer_config.json has no added_tokens_decoder, and there is no %s", ErrUnsupported, model.Dir(), tokenizer.File)
	}
	data, err := tokenizer.FromSlow(vocab, merges, added)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", model.Dir(), err)
	}
	return data, nil
}

// complete checks the vocabulary against the embedding, finds the tokens that
// configurations name, and adds videoToken behind the others.
func (w *words) complete(vocab int) error {
	t, err := tokenizer.Load(w.json)
	if err != nil {
		return err
	}
	if t.Size() > vocab {
		return fmt.Errorf("%w: the tokenizer has %d ids, llm_config.vocab_size is %d", ErrUnsupported, t.Size(), vocab)
	}
	if _, ok := t.ID(videoToken); !ok {
		video := tokenizer.Added{ID: int32(t.Size()), Content: videoToken, Special: true}
		if w.json, err = tokenizer.Extend(w.json, video); err != nil {
			return err
		}
		if t, err = tokenizer.Load(w.json); err != nil {
			return err
		}
	}
	w.added, w.ids = t.AddedTokens(), map[string]int32{}
	for _, token := range []string{startImage, endImage, imageToken, tokenizer.EndOfText, tokenizer.StartOfTurn, tokenizer.EndOfTurn} {
		id, ok := t.ID(token)
		if !ok || !t.Special(id) {
			return fmt.Errorf("%w: the tokenizer has no special token %s", ErrUnsupported, token)
		}
		w.ids[token] = id
	}
	return nil
}
