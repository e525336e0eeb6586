// Package tokenizer turns text into token ids and back as Qwen2 does: Unicode
// NFC, special tokens first, Qwen's split into words, byte-level BPE. It reads
// tokenizer.json, renders Qwen2.5-VL's chat template, expands image pads and
// learns a vocabulary from a corpus.
//
// It is no general tokenizer library: a tokenizer.json with another
// normaliser, split pattern or model, and a chat template of unknown text, are
// refused by name instead of being interpreted approximately.
package tokenizer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// File is the name of the tokenizer's file in a model directory.
const File = "tokenizer.json"

// maxID bounds token ids, so that a hostile file cannot ask for a huge table.
const maxID = 1 << 20

// maxFile bounds tokenizer.json in bytes; Qwen2.5's has 7 MB.
const maxFile = 64 << 20

// ErrUnsupported is wrapped by errors about files that are valid but need
// something that this package does not do.
var ErrUnsupported = errors.New("unsupported tokenizer")

// Tokenizer is one vocabulary. It is immutable and safe for concurrent use.
type Tokenizer struct {
	tokens  []string         // id -> spelling: byte-level for model tokens, plain for added ones
	bytes   [][]byte         // id -> the bytes it decodes to
	ids     map[string]int32 // spelling -> id
	merges  map[pair]merge
	order   []pair     // merges by rank
	byteID  [256]int32 // id of each single byte, -1 when the vocabulary lacks it
	special map[int32]bool
	json    []byte // the tokenizer.json it was read from
	digest  string
	whole   bool // ignore_merges: a word that is a token is never cut
	// Added tokens are matched in the text as given, those marked normalized in
	// its normal form.
	raw, normalized matcher
}

// Added is a token outside the BPE model, matched in the text before anything
// else.
type Added struct {
	ID      int32
	Content string
	Special bool // left out by Decode with skipSpecial
}

// pair is two neighbouring tokens; merge is what they become, and when.
type pair struct{ left, right int32 }
type merge struct{ rank, id int32 }

// Open reads dir/tokenizer.json.
func Open(dir string) (*Tokenizer, error) {
	path := filepath.Join(dir, File)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("tokenizer: %s has %d bytes, at most %d are read", path, info.Size(), maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	t, err := Load(data)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %s: %w", path, err)
	}
	return t, nil
}

// Load reads the content of a tokenizer.json.
func Load(data []byte) (*Tokenizer, error) {
	spec, err := parse(data)
	if err != nil {
		return nil, err
	}
	t, err := build(spec)
	if err != nil {
		return nil, err
	}
	t.json = bytes.Clone(data)
	sum := sha256.Sum256(data)
	t.digest = hex.EncodeToString(sum[:])
	return t, nil
}

// Size is the number of ids: the highest one plus 1. Ids below it may be unused.
func (t *Tokenizer) Size() int { return len(t.tokens) }

// Digest is the SHA-256 of the tokenizer.json it was read from, lower-case hex.
func (t *Tokenizer) Digest() string { return t.digest }

// ID finds a token by its spelling: byte-level for model tokens ("Ġthe"), plain
// for added ones ("<|im_end|>").
func (t *Tokenizer) ID(token string) (int32, bool) {
	id, ok := t.ids[token]
	return id, ok
}

// Token is the spelling of id; ok is false for an unused id.
func (t *Tokenizer) Token(id int32) (token string, ok bool) {
	if id < 0 || int(id) >= len(t.tokens) || t.bytes[id] == nil {
		return "", false
	}
	return t.tokens[id], true
}

// Bytes is what id decodes to, which need not be valid UTF-8 by itself. The
// caller must not change it; ok is false for an unused id.
func (t *Tokenizer) Bytes(id int32) (b []byte, ok bool) {
	if id < 0 || int(id) >= len(t.tokens) || t.bytes[id] == nil {
		return nil, false
	}
	return t.bytes[id], true
}

// Special tells whether id is an added token marked special.
func (t *Tokenizer) Special(id int32) bool { return t.special[id] }

// AddedTokens lists the tokens outside the BPE model in id order.
func (t *Tokenizer) AddedTokens() []Added {
	all := slices.Concat(t.raw.tokens, t.normalized.tokens)
	slices.SortFunc(all, func(a, b Added) int { return int(a.ID) - int(b.ID) })
	return all
}
