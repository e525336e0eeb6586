package dataset

import (
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// question builds the value from a record whose images are stored.
func (s *Set) question(number int, rec Record, images []rollout.Image) (rollout.Question, error) {
	text, answer, caption, err := rec.split()
	if err != nil {
		return rollout.Question{}, err
	}
	o := s.options
	q := rollout.Question{
		ID: fmt.Sprintf("%s-%06d", o.Name, number), Level: rollout.Basic, Split: o.Name, Modality: rec.Modality,
	}
	if q.Modality == "" {
		q.Modality = o.Modality
	}
	if rec.PMCID != "" || rec.Title != "" {
		q.Level = rollout.Complex
	}
	if caption {
		q.Kind, q.Text, q.Response = rollout.Caption, text, answer
		if text == "" {
			q.Text = o.Prompt.Describe
		}
	} else {
		t := classify(text, answer, rec.QuestionType, o.Kind)
		q.Kind, q.Text, q.Gold = t.kind, t.question, t.gold
		if rec.Reason != "" {
			q.Response = Response(rec.Reason, t.gold)
		}
	}
	q.Messages = o.Prompt.Messages(q.Kind, q.Text, images)
	return q, nil
}
