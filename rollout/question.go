package rollout

// Kind is the type of a question, which decides its prompt suffix and how its
// answer is scored.
type Kind string

// The question types of MM-Retinal-Reason, and Caption for stage-1 records
// that have no question.
const (
	SingleChoice   Kind = "single"
	MultipleChoice Kind = "multiple"
	TrueFalse      Kind = "truefalse"
	Open           Kind = "open"
	Caption        Kind = "caption"
)

// Level tells basic records (one image, lettered options) from complex ones
// (a vignette with one to six images).
type Level string

// The two levels of MM-Retinal-Reason.
const (
	Basic   Level = "basic"
	Complex Level = "complex"
)

// Image refers to one image by content; its bytes never travel with it.
type Image struct {
	Digest    string `json:"digest"`     // SHA-256 of the encoded file, lower-case hex
	MediaType string `json:"media_type"` // such as image/jpeg
}

// Part is one piece of a message: text, or an image when Image is set.
type Part struct {
	Text  string `json:"text,omitempty"`
	Image *Image `json:"image,omitempty"`
}

// Message is one turn of the conversation that a model is shown, in the order
// the chat template renders it.
type Message struct {
	Role  string `json:"role"` // system, user or assistant
	Parts []Part `json:"parts"`
}

// Question is one record of a dataset as the whole ring sees it. It is
// immutable once handed on.
type Question struct {
	ID       string `json:"id"`       // unique in its dataset and stable between runs
	Kind     Kind   `json:"kind"`     //
	Level    Level  `json:"level"`    //
	Modality string `json:"modality"` // CFP, FFA, OCT, ...; empty when the record does not say
	Split    string `json:"split"`    // name of the split it came from, such as train
	// Text is the question as asked, options included and prompt suffix not:
	// what the answer scorer parses options from.
	Text string `json:"text"`
	Gold string `json:"gold"` // reference answer: a letter, a letter set, or a name
	// Messages is what the policy is shown, system text and suffix included.
	Messages []Message `json:"messages"`
	// Response is the target text of align and sft records; empty in RL.
	Response string `json:"response,omitempty"`
}

// Images lists the images of q in the order in which its messages show them.
func (q Question) Images() []Image {
	var images []Image
	for _, m := range q.Messages {
		for _, p := range m.Parts {
			if p.Image != nil {
				images = append(images, *p.Image)
			}
		}
	}
	return images
}
