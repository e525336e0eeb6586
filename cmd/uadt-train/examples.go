package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"html/template"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/phantom"
)

// example is one answer as the page shows it.
type example struct {
	ID, Question, Gold, Text string
	Strict                   predictionOut
	Tokens                   int
	Images                   []template.URL // embedded; only phantoms are
	Withheld                 int            // images that are not shown
}

// examplesEach is how many wrong and how many right answers the page shows.
const examplesEach = 4

// examples are the first wrong and the first right answers, in the order of the
// records. Photographs may be of patients and a page travels easily: only images
// that were written as phantoms are put into it.
func (l *predictions) examples(ctx context.Context, store *blob.Store) ([]example, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var wrong, right []example
	for _, q := range l.questions {
		lines := l.lines[q.question.ID]
		if len(lines) == 0 || lines[0].Strict == nil {
			continue
		}
		list := &wrong
		if lines[0].Strict.Correct {
			list = &right
		}
		if len(*list) == examplesEach {
			continue
		}
		e := example{
			ID: q.question.ID, Question: q.question.Text, Gold: q.question.Gold,
			Text: lines[0].Text, Strict: *lines[0].Strict, Tokens: lines[0].Tokens,
		}
		for _, image := range q.question.Images() {
			if !phantom.Wrote(filepath.Dir(q.dataset), image.Digest) {
				e.Withheld++
				continue
			}
			data, err := store.Get(ctx, image.Digest)
			if err != nil {
				return nil, fmt.Errorf("report: image of %s: %w", e.ID, err)
			}
			// Of bytes that were decoded as an image, in base64: nothing in it can end the attribute.
			e.Images = append(e.Images, template.URL("data:"+detectType(data)+";base64,"+base64.StdEncoding.EncodeToString(data)))
		}
		*list = append(*list, e)
	}
	return append(wrong, right...), nil
}
