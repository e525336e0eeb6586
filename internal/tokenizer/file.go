package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// file writes what was learnt as a tokenizer.json: bytes first, in byte order,
// then merged tokens, then the added ones.
func (l *learner) file() ([]byte, error) {
	s := qwenSpec()
	for id, b := range l.spelling {
		s.Model.Vocab[spell([]byte(b))] = int32(id)
	}
	for _, p := range l.merges {
		s.Model.Merges = append(s.Model.Merges,
			mergeSpec{spell([]byte(l.spelling[p.left])), spell([]byte(l.spelling[p.right]))})
	}
	for i, a := range DefaultAdded {
		s.Added = append(s.Added, addedSpec{ID: int32(len(l.spelling) + i), Content: a.Content, Special: a.Special})
	}
	return encodeJSON(s)
}

// qwenSpec is Qwen2's kind of tokenizer without a token.
func qwenSpec() spec {
	no, yes := false, true
	level := component{Type: "ByteLevel", AddPrefixSpace: &no, TrimOffsets: &no, UseRegex: &no}
	empty := ""
	return spec{
		Version:    "1.0",
		Normalizer: &component{Type: "NFC"},
		PreTokenizer: &component{Type: "Sequence", Pretokenizers: []component{
			{Type: "Split", Pattern: &map[string]string{"Regex": SplitPattern}, Behavior: "Isolated", Invert: &no},
			level,
		}},
		Post:    &level,
		Decoder: &component{Type: "ByteLevel", AddPrefixSpace: &yes, TrimOffsets: &yes, UseRegex: &yes},
		Model:   modelSpec{Type: "BPE", Prefix: &empty, Suffix: &empty, Vocab: map[string]int32{}},
	}
}

// encodeJSON writes v indented, without escaping < and >, which special tokens
// are full of.
func encodeJSON(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("tokenizer: encoding: %w", err)
	}
	return out.Bytes(), nil
}

// AddedEntry is one entry of added_tokens_decoder in tokenizer_config.json,
// whose keys are ids.
type AddedEntry struct {
	Content    string `json:"content"`
	LStrip     bool   `json:"lstrip"`
	Normalized bool   `json:"normalized"`
	RStrip     bool   `json:"rstrip"`
	SingleWord bool   `json:"single_word"`
	Special    bool   `json:"special"`
}

// Files writes the tokenizer as the files of a model directory, by name:
// tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and the chat
// template (QwenTemplate) in the two places where programs look for it.
// maxLength is model_max_length, in tokens. Files written by Files and read by
// Open give the same tokenizer again.
func (t *Tokenizer) Files(maxLength int) (map[string][]byte, error) {
	config := map[string]any{
		"tokenizer_class": "Qwen2Tokenizer", "model_max_length": maxLength,
		"eos_token": EndOfTurn, "pad_token": EndOfText, "bos_token": nil, "unk_token": nil,
		"add_bos_token": false, "add_prefix_space": false, "clean_up_tokenization_spaces": false,
		"errors": "replace", "split_special_tokens": false, "chat_template": QwenTemplate,
	}
	decoder, additional, isAdded := map[string]AddedEntry{}, []string{}, map[int32]bool{}
	for _, a := range t.AddedTokens() {
		decoder[fmt.Sprint(a.ID)] = AddedEntry{Content: a.Content, Special: a.Special}
		isAdded[a.ID] = true
		if a.Special && a.Content != EndOfText {
			additional = append(additional, a.Content)
		}
	}
	config["added_tokens_decoder"], config["additional_special_tokens"] = decoder, additional
	vocab := map[string]int32{}
	for id, token := range t.tokens {
		if t.bytes[id] != nil && !isAdded[int32(id)] {
			vocab[token] = int32(id)
		}
	}
	var merges strings.Builder
	merges.WriteString("#version: 0.2\n")
	for _, p := range t.order {
		fmt.Fprintf(&merges, "%s %s\n", t.tokens[p.left], t.tokens[p.right])
	}
	files := map[string][]byte{File: t.json, "merges.txt": []byte(merges.String()), "chat_template.jinja": []byte(QwenTemplate)}
	for name, v := range map[string]any{"vocab.json": vocab, "tokenizer_config.json": config,
		"chat_template.json": map[string]string{"chat_template": QwenTemplate}} {
		data, err := encodeJSON(v)
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}
