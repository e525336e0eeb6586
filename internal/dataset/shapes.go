package dataset

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// foreign holds the fields of the other shapes that a JSON record may have.
type foreign struct {
	QuestionID   string          `json:"question_id"`
	Question     string          `json:"question"`
	GTAnswer     *string         `json:"gt_answer"`
	Answer       *string         `json:"answer"`
	ImagePath    Strings         `json:"image_path"`
	OptionA      json.RawMessage `json:"option_A"`
	OptionB      json.RawMessage `json:"option_B"`
	OptionC      json.RawMessage `json:"option_C"`
	OptionD      json.RawMessage `json:"option_D"`
	ModalityType string          `json:"modality_type"`
}

// parseJSONRecord reads one element of a JSON array or line of a JSONL file:
// an MM-Retinal-Reason record, a caption pair, or an OmniMedVQA record.
func parseJSONRecord(data []byte) (Record, error) {
	// A mark may begin the file, and every part of files put one after another.
	data = bytes.TrimPrefix(data, []byte(byteOrderMark))
	if trimmed := bytes.TrimSpace(data); len(trimmed) == 0 || trimmed[0] != '{' {
		return Record{}, fmt.Errorf("%w: want an object, have %q", ErrFormat, shorten(string(trimmed)))
	}
	var rec Record
	if err := json.Unmarshal(data, &rec); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if len(rec.Conversations) > 0 {
		return rec, nil
	}
	var other foreign
	if err := json.Unmarshal(data, &other); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if other.Question == "" {
		return rec, nil // a caption pair, or nothing: judged later
	}
	gold := other.GTAnswer
	if gold == nil {
		gold = other.Answer
	}
	if gold == nil {
		return Record{}, fmt.Errorf("%w: a question without gt_answer or answer", ErrFields)
	}
	options := []string{optional(other.OptionA), optional(other.OptionB), optional(other.OptionC), optional(other.OptionD)}
	if rec.ID == "" {
		rec.ID = other.QuestionID
	}
	if len(rec.Image) == 0 {
		rec.Image = other.ImagePath
	}
	if rec.Modality == "" {
		rec.Modality = other.ModalityType
	}
	rec.Conversations = []Turn{{From: "human", Value: withOptions(other.Question, options)}, {From: "gpt", Value: *gold}}
	return rec, nil
}

// optional is an option that may be a string, a number, null or missing.
func optional(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	if text := strings.TrimSpace(string(raw)); text != "null" {
		return text
	}
	return ""
}

// withOptions appends the options that are not empty, lettered from A. An
// empty option ends the list.
func withOptions(question string, options []string) string {
	var b strings.Builder
	b.WriteString(strings.TrimSpace(question))
	for i, o := range options {
		if strings.TrimSpace(o) == "" {
			break
		}
		fmt.Fprintf(&b, "\n%c. %s", 'A'+i, strings.TrimSpace(o))
	}
	return b.String()
}

// rowRecord turns a row of a VLMEvalKit TSV, or of a CSV with the same columns
// or a base64 column, into a record.
func rowRecord(row map[string]string) (Record, error) {
	question, answer := row["question"], row["answer"]
	if question == "" {
		if caption := row["caption"]; caption != "" {
			return Record{ID: row["index"], Image: cellImages(row), Caption: caption, Modality: row["modality"]}, nil
		}
		return Record{}, fmt.Errorf("%w: no question", ErrFields)
	}
	if hint := strings.TrimSpace(row["hint"]); hint != "" {
		question = hint + "\n" + question
	}
	var options []string
	for c := 'a'; c <= 'z'; c++ {
		o, ok := row[string(c)]
		if !ok {
			break
		}
		options = append(options, o)
	}
	return Record{
		ID: row["index"], Image: cellImages(row), Modality: row["modality"],
		Conversations: []Turn{{From: "human", Value: withOptions(question, options)}, {From: "gpt", Value: answer}},
	}, nil
}

// cellImages reads the image cell: one image, or several in list notation.
func cellImages(row map[string]string) Strings {
	value := row["image"]
	if b := row["base64"]; b != "" {
		value = b
	}
	if value == "" {
		value = row["image_path"]
	}
	value = strings.TrimSpace(value)
	if value == "" {
		return nil
	}
	if strings.HasPrefix(value, "[") && strings.HasSuffix(value, "]") {
		var list []string
		if json.Unmarshal([]byte(value), &list) == nil ||
			json.Unmarshal([]byte(strings.ReplaceAll(value, "'", `"`)), &list) == nil {
			return list
		}
	}
	return Strings{value}
}

// split returns question, answer and whether the record is a caption pair.
func (r Record) split() (question, answer string, caption bool, err error) {
	if len(r.Conversations) == 0 {
		if r.Caption == "" {
			return "", "", false, fmt.Errorf("%w: neither conversations nor caption", ErrFields)
		}
		return "", r.Caption, true, nil
	}
	var human, gpt int
	for _, turn := range r.Conversations {
		switch turn.From {
		case "human", "user":
			human++
			question = strings.TrimSpace(stripImageTags(turn.Value))
		case "gpt", "assistant":
			gpt++
			answer = strings.TrimSpace(turn.Value)
		default:
			return "", "", false, fmt.Errorf("%w: a turn from %q, want human or gpt", ErrFields, turn.From)
		}
	}
	switch {
	case human != 1 || gpt != 1:
		return "", "", false, fmt.Errorf("%w: %d human and %d gpt turns, want one each", ErrFields, human, gpt)
	case question == "":
		return "", "", false, fmt.Errorf("%w: the question is empty", ErrFields)
	case answer == "":
		return "", "", false, fmt.Errorf("%w: the answer is empty", ErrFields)
	}
	return question, answer, r.QuestionType == string(rollout.Caption), nil
}

// stripImageTags removes the <image> marks that LLaVA-style files carry; the
// place of the images is decided by the prompt.
func stripImageTags(s string) string { return strings.ReplaceAll(s, "<image>", "") }
