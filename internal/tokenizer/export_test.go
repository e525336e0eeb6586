package tokenizer

// Joins tells whether the vocabulary merges these two tokens.
func (t *Tokenizer) Joins(left, right string) bool {
	_, ok := t.merges[pair{t.ids[left], t.ids[right]}]
	return ok
}
