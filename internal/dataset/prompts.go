package dataset

import (
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// Prompt turns a question into messages. In every template {Question} stands
// for the question with its options.
type Prompt struct {
	// System is the system text; empty sends no system message.
	System string
	// Templates by question type; a missing one is {Question} alone. True/false
	// falls back to single choice.
	Templates map[rollout.Kind]string
	// ImagesFirst puts the images before the text in the user message; default
	// is text first, as the authors evaluate.
	ImagesFirst bool
	// Describe is what a caption record without a question of its own is asked.
	Describe string
}

// The texts below are interface data: the released OphthaReason models expect
// them byte for byte (eval/eval.py of github.com/lxirich/OphthaReason, commit
// d2a5c97), odd spacing included.
const (
	ophthaSystem = "You're a professional ophthalmologist.A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>"

	ophthaMultiple = "{Question}. First output the thinking process in English in <think> </think> tags and then output the final answer in English in <answer> </answer> tags. The final answer must be uppercase letters separated by commas without spaces (e.g., B,E,F). Note that this is a multiple-choice question with potentially multiple correct answers. Carefully analyze all options."

	ophthaSingle = "{Question}. First output the thinking process in English in <think> </think> tags and then output the final answer in English in <answer> </answer> tags. The final answer must be uppercase letters (e.g., B). Note that this is a single-choice question with only one correct answer. Carefully analyze all options."

	ophthaOpen = "{Question}. First output the thinking process in English in <think> </think> tags. Then output the final answer (just the name of the disease/entity) in English in <answer> </answer> tags."
)

// OphthaPrompt is what the released models were trained and are evaluated on.
// No true/false text is published: the single-choice one serves.
func OphthaPrompt() Prompt {
	return Prompt{
		System: ophthaSystem,
		Templates: map[rollout.Kind]string{
			rollout.SingleChoice:   ophthaSingle,
			rollout.MultipleChoice: ophthaMultiple,
			rollout.Open:           ophthaOpen,
		},
		Describe: "Describe the image.",
	}
}

// MicroPrompt is short, for the micro model whose context is a few dozen
// tokens. Images come first, so that what the image tokens become does not
// depend on the question.
func MicroPrompt() Prompt {
	return Prompt{System: "Think, then answer.", ImagesFirst: true, Describe: "Describe the image."}
}

// template is the text for kind.
func (p Prompt) template(kind rollout.Kind) string {
	if t, ok := p.Templates[kind]; ok {
		return t
	}
	if kind == rollout.TrueFalse {
		if t, ok := p.Templates[rollout.SingleChoice]; ok {
			return t
		}
	}
	return "{Question}"
}

// Messages is what the policy is shown for a question of the given kind.
func (p Prompt) Messages(kind rollout.Kind, question string, images []rollout.Image) []rollout.Message {
	var messages []rollout.Message
	if p.System != "" {
		messages = append(messages, rollout.Message{Role: "system", Parts: []rollout.Part{{Text: p.System}}})
	}
	text := rollout.Part{Text: strings.ReplaceAll(p.template(kind), "{Question}", question)}
	parts := make([]rollout.Part, 0, len(images)+1)
	if !p.ImagesFirst {
		parts = append(parts, text)
	}
	for i := range images {
		parts = append(parts, rollout.Part{Image: &images[i]})
	}
	if p.ImagesFirst {
		parts = append(parts, text)
	}
	return append(messages, rollout.Message{Role: "user", Parts: parts})
}
