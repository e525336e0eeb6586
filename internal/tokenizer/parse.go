package tokenizer

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
)

// spec is the part of tokenizer.json that decides what text becomes.
type spec struct {
	Version      string      `json:"version"`
	Truncation   any         `json:"truncation"`
	Padding      any         `json:"padding"`
	Added        []addedSpec `json:"added_tokens"`
	Normalizer   *component  `json:"normalizer"`
	PreTokenizer *component  `json:"pre_tokenizer"`
	Post         *component  `json:"post_processor"`
	Decoder      *component  `json:"decoder"`
	Model        modelSpec   `json:"model"`
}

type addedSpec struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// component is a normaliser, pre-tokeniser, post-processor or decoder.
type component struct {
	Type           string             `json:"type"`
	Pretokenizers  []component        `json:"pretokenizers,omitempty"`
	Pattern        *map[string]string `json:"pattern,omitempty"`
	Behavior       string             `json:"behavior,omitempty"`
	Invert         *bool              `json:"invert,omitempty"`
	AddPrefixSpace *bool              `json:"add_prefix_space,omitempty"`
	TrimOffsets    *bool              `json:"trim_offsets,omitempty"`
	UseRegex       *bool              `json:"use_regex,omitempty"`
}

type modelSpec struct {
	Type         string           `json:"type"`
	Dropout      *float64         `json:"dropout"`
	Unknown      *string          `json:"unk_token"`
	Prefix       *string          `json:"continuing_subword_prefix"`
	Suffix       *string          `json:"end_of_word_suffix"`
	FuseUnknown  bool             `json:"fuse_unk"`
	ByteFallback bool             `json:"byte_fallback"`
	IgnoreMerges bool             `json:"ignore_merges"`
	Vocab        map[string]int32 `json:"vocab"`
	Merges       []mergeSpec      `json:"merges"`
}

// mergeSpec is one merge, written "a b" or ["a", "b"].
type mergeSpec [2]string

// UnmarshalJSON implements json.Unmarshaler.
func (m *mergeSpec) UnmarshalJSON(data []byte) error {
	var parts []string
	if len(data) > 0 && data[0] == '"' {
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		parts = strings.Split(s, " ")
	} else if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return fmt.Errorf("merge %s does not name two tokens", data)
	}
	m[0], m[1] = parts[0], parts[1]
	return nil
}

// parse reads tokenizer.json and refuses what is not Qwen2's kind.
func parse(data []byte) (spec, error) {
	var s spec
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("reading tokenizer.json: %w", err)
	}
	for _, check := range []struct {
		ok   bool
		what string
	}{
		{s.Normalizer != nil && s.Normalizer.Type == "NFC", "normalizer is not NFC"},
		{s.PreTokenizer.isQwen(), "pre_tokenizer is not Qwen2's split followed by bytes"},
		{s.Post == nil || s.Post.Type == "ByteLevel", "post_processor adds tokens"},
		{s.Decoder != nil && s.Decoder.Type == "ByteLevel", "decoder is not ByteLevel"},
		{s.Truncation == nil, "truncation is set"},
		{s.Padding == nil, "padding is set"},
		{s.Model.Type == "BPE" || s.Model.Type == "", "model is " + s.Model.Type + ", want BPE"},
		{s.Model.Dropout == nil || *s.Model.Dropout == 0, "model.dropout is set"},
		{s.Model.Unknown == nil, "model.unk_token is set"},
		{s.Model.Prefix == nil || *s.Model.Prefix == "", "model.continuing_subword_prefix is set"},
		{s.Model.Suffix == nil || *s.Model.Suffix == "", "model.end_of_word_suffix is set"},
		{!s.Model.ByteFallback, "model.byte_fallback is set"},
	} {
		if !check.ok {
			return s, fmt.Errorf("%w: %s", ErrUnsupported, check.what)
		}
	}
	for _, a := range s.Added {
		if a.SingleWord || a.LStrip || a.RStrip {
			return s, fmt.Errorf("%w: added token %q has single_word, lstrip or rstrip", ErrUnsupported, a.Content)
		}
	}
	return s, nil
}

// isQwen tells whether c is the pre-tokeniser that split.go implements.
func (c *component) isQwen() bool {
	if c == nil || c.Type != "Sequence" || len(c.Pretokenizers) != 2 {
		return false
	}
	split, bytes := c.Pretokenizers[0], c.Pretokenizers[1]
	return split.Type == "Split" && split.Pattern != nil && (*split.Pattern)["Regex"] == SplitPattern &&
		split.Behavior == "Isolated" && !isSet(split.Invert, false) &&
		bytes.Type == "ByteLevel" && !isSet(bytes.AddPrefixSpace, true) && !isSet(bytes.UseRegex, true)
}

// isSet reads a flag that has a default when it is absent.
func isSet(flag *bool, absent bool) bool {
	if flag == nil {
		return absent
	}
	return *flag
}

// build makes the tables of a tokenizer and checks that they agree.
func build(s spec) (*Tokenizer, error) {
	t := &Tokenizer{ids: map[string]int32{}, merges: make(map[pair]merge, len(s.Model.Merges)),
		special: map[int32]bool{}, whole: s.Model.IgnoreMerges}
	for token, id := range s.Model.Vocab {
		if err := t.put(token, id, unspell(token)); err != nil {
			return nil, err
		}
	}
	for b := range 256 {
		t.byteID[b] = -1
		if id, ok := s.Model.Vocab[spell([]byte{byte(b)})]; ok {
			t.byteID[b] = id
		}
	}
	for rank, m := range s.Model.Merges {
		left, okLeft := s.Model.Vocab[m[0]]
		right, okRight := s.Model.Vocab[m[1]]
		id, ok := s.Model.Vocab[m[0]+m[1]]
		if !ok || !okLeft || !okRight {
			return nil, fmt.Errorf("merge %d (%q %q) names a token outside the vocabulary", rank, m[0], m[1])
		}
		t.merges[pair{left, right}] = merge{int32(rank), id} // a repeated pair takes its last rank, as in the reference
		t.order = append(t.order, pair{left, right})
	}
	return t, t.addTokens(s.Added)
}

// put enters one token.
func (t *Tokenizer) put(token string, id int32, bytes []byte) error {
	if id < 0 || id > maxID {
		return fmt.Errorf("token %q has id %d, want 0 to %d", token, id, maxID)
	}
	if token == "" {
		return fmt.Errorf("token %d is empty", id)
	}
	for len(t.tokens) <= int(id) {
		t.tokens = append(t.tokens, "")
		t.bytes = append(t.bytes, nil)
	}
	if t.bytes[id] != nil && t.tokens[id] != token {
		return fmt.Errorf("tokens %q and %q have the same id %d", t.tokens[id], token, id)
	}
	if old, ok := t.ids[token]; ok && old != id {
		return fmt.Errorf("token %q has the ids %d and %d", token, old, id)
	}
	t.tokens[id], t.bytes[id], t.ids[token] = token, bytes, id
	return nil
}

// addTokens enters the added tokens and the tables that find them in a text.
func (t *Tokenizer) addTokens(added []addedSpec) error {
	for _, a := range added {
		if err := t.put(a.Content, a.ID, unspell(a.Content)); err != nil {
			return err
		}
		if a.Normalized {
			if normalize(a.Content) != a.Content {
				return fmt.Errorf("%w: added token %q is not in normal form", ErrUnsupported, a.Content)
			}
			t.normalized.add(Added{a.ID, a.Content, a.Special})
		} else {
			t.raw.add(Added{a.ID, a.Content, a.Special})
		}
		if a.Special {
			t.special[a.ID] = true
		}
	}
	t.raw.index()
	t.normalized.index()
	return nil
}

// matcher finds tokens in a text: at each place the longest one.
type matcher struct {
	tokens  []Added
	byFirst [256][]Added // by first byte, longest content first
}

func (m *matcher) add(a Added) { m.tokens = append(m.tokens, a) }

func (m *matcher) index() {
	for _, a := range m.tokens {
		m.byFirst[a.Content[0]] = append(m.byFirst[a.Content[0]], a)
	}
	for _, list := range m.byFirst {
		sort.SliceStable(list, func(i, j int) bool { return len(list[i].Content) > len(list[j].Content) })
	}
}

// next finds the first token at or behind from; at is the text's end if there
// is none.
func (m *matcher) next(text string, from int) (at int, found *Added) {
	if len(m.tokens) == 0 {
		return len(text), nil
	}
	for at = from; at < len(text); at++ {
		for i, a := range m.byFirst[text[at]] {
			if strings.HasPrefix(text[at:], a.Content) {
				return at, &m.byFirst[text[at]][i]
			}
		}
	}
	return len(text), nil
}
