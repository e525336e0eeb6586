package tokenizer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// FromSlow makes a tokenizer.json from the files that checkpoints have for
// Qwen2's tokenizer in its old form: vocab.json, merges.txt, and the added
// tokens, which stand in tokenizer_config.json. The result is a function of its
// arguments and has been loaded once.
func FromSlow(vocab, merges []byte, added []Added) ([]byte, error) {
	s := qwenSpec()
	if err := json.Unmarshal(vocab, &s.Model.Vocab); err != nil {
		return nil, fmt.Errorf("tokenizer: vocab.json: %w", err)
	}
	if len(s.Model.Vocab) == 0 {
		return nil, fmt.Errorf("tokenizer: vocab.json names no token")
	}
	lines := bufio.NewScanner(bytes.NewReader(merges))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimRight(lines.Text(), "\r")
		if line == "" || number == 1 && strings.HasPrefix(line, "#version") {
			continue
		}
		left, right, ok := strings.Cut(line, " ")
		if !ok || left == "" || right == "" || strings.Contains(right, " ") {
			return nil, fmt.Errorf("tokenizer: merges.txt line %d: %q does not name two tokens", number, line)
		}
		s.Model.Merges = append(s.Model.Merges, mergeSpec{left, right})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("tokenizer: merges.txt: %w", err)
	}
	return s.with(added)
}

// Extend adds tokens to the content of a tokenizer.json.
func Extend(data []byte, added ...Added) ([]byte, error) {
	s, err := parse(data)
	if err != nil {
		return nil, err
	}
	return s.with(added)
}

// with renders s and more added tokens, if a tokenizer can be made of them.
func (s spec) with(added []Added) ([]byte, error) {
	for _, a := range added {
		s.Added = append(s.Added, addedSpec{ID: a.ID, Content: a.Content, Special: a.Special})
	}
	data, err := encodeJSON(s)
	if err != nil {
		return nil, err
	}
	_, err = Load(data)
	return data, err
}
