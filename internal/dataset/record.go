package dataset

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Record is one element of an MM-Retinal-Reason file, which is also the format
// that our synthetic sets are written in.
type Record struct {
	// ID names the record within its file; empty in the public release, where
	// the record's place in the file serves.
	ID string `json:"id,omitempty"`
	// Image holds paths (relative to the file), base64 or data URLs, or keys of
	// a CSV file with a base64 column.
	Image Strings `json:"image,omitempty"`
	// Conversations is the question (from "human") and the answer (from "gpt").
	Conversations []Turn `json:"conversations,omitempty"`
	// Reason is the reasoning trace; absent in evaluation files.
	Reason string `json:"reason,omitempty"`
	// PMCID and Title are set in complex records only.
	PMCID string `json:"pmcid,omitempty"`
	Title string `json:"title,omitempty"`
	// Caption describes the image; with no conversations it makes the record a
	// caption pair of stage 1.
	Caption string `json:"caption,omitempty"`
	// QuestionType overrides the detected type: single, multiple, truefalse or
	// open. Our own sets state it.
	QuestionType string `json:"question_type,omitempty"`
	// Modality is CFP, FFA, OCT, ...; empty when unknown.
	Modality string `json:"modality,omitempty"`
}

// Turn is one message of a conversation as the files have it.
type Turn struct {
	From  string `json:"from"` // human or gpt
	Value string `json:"value"`
}

// Strings is a list that a file may also write as a bare string.
type Strings []string

// UnmarshalJSON takes a list of strings, a bare string, or null.
func (s *Strings) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	if len(data) > 0 && data[0] == '"' {
		var one string
		if err := json.Unmarshal(data, &one); err != nil {
			return fmt.Errorf("string: %w", err)
		}
		*s = Strings{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(data, &many); err != nil {
		return fmt.Errorf("string or list of strings: %w", err)
	}
	*s = many
	return nil
}
