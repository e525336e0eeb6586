package tokenizer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The special tokens of Qwen2.5-VL that prompts are made of.
const (
	EndOfText   = "<|endoftext|>"
	StartOfTurn = "<|im_start|>"
	EndOfTurn   = "<|im_end|>"
	VisionStart = "<|vision_start|>"
	VisionEnd   = "<|vision_end|>"
	VisionPad   = "<|vision_pad|>"
	ImagePad    = "<|image_pad|>"
	VideoPad    = "<|video_pad|>"
)

// defaultSystem is what the template puts in front of a conversation that does
// not begin with a system message.
const defaultSystem = "You are a helpful assistant."

// QwenTemplate is a chat template with the meaning of Qwen2.5-VL's, in Jinja,
// as model init writes it: every turn between <|im_start|>ROLE and <|im_end|>,
// images as one <|image_pad|> between vision marks, a default system turn.
const QwenTemplate = `{%- if messages and messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
`

// knownTemplates maps the SHA-256 of a template's text, without white space
// around it, to its name. Render means the same as each of them.
var knownTemplates = map[string]string{
	digestOf(QwenTemplate): "qwen2.5-vl (uadt-train)",
	// The text published with Qwen2.5-VL-Instruct.
	"a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb": "qwen2.5-vl",
}

// Message is one turn of a conversation.
type Message struct {
	Role  string // system, user or assistant
	Parts []Part
}

// Part is a piece of a message: text, or the place of an image.
type Part struct {
	Text  string
	Image bool
}

// Template is a chat template whose meaning is known.
type Template struct{ name string }

// UnknownTemplateError refuses a chat template that Render cannot stand for.
type UnknownTemplateError struct{ Digest string }

// Error implements error.
func (e *UnknownTemplateError) Error() string {
	return fmt.Sprintf("chat template with SHA-256 %s is none of those this program can render", e.Digest)
}

// TemplateOf recognises a chat template by its text; an unknown one fails with
// a *UnknownTemplateError.
func TemplateOf(text string) (Template, error) {
	digest := digestOf(text)
	name, ok := knownTemplates[digest]
	if !ok {
		return Template{}, &UnknownTemplateError{digest}
	}
	return Template{name}, nil
}

// digestOf is the SHA-256 of text without white space around it, in hex.
func digestOf(text string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(text)))
	return hex.EncodeToString(sum[:])
}

// OpenTemplate finds the chat template of a model directory where transformers
// looks for it, in its order: chat_template.jinja, chat_template.json,
// tokenizer_config.json.
func OpenTemplate(dir string) (Template, error) {
	text, from, err := findTemplate(dir)
	if err != nil {
		return Template{}, fmt.Errorf("tokenizer: %w", err)
	}
	t, err := TemplateOf(text)
	if err != nil {
		return t, fmt.Errorf("tokenizer: %s: %w", filepath.Join(dir, from), err)
	}
	return t, nil
}

// findTemplate returns the text of a directory's template and its file's name.
func findTemplate(dir string) (text, from string, err error) {
	from = "chat_template.jinja"
	data, err := os.ReadFile(filepath.Join(dir, from))
	if err == nil {
		return string(data), from, nil
	}
	for _, from = range []string{"chat_template.json", "tokenizer_config.json"} {
		if !errors.Is(err, os.ErrNotExist) {
			return "", from, err
		}
		if data, err = os.ReadFile(filepath.Join(dir, from)); err != nil {
			continue
		}
		var holder struct {
			ChatTemplate string `json:"chat_template"`
		}
		if err := json.Unmarshal(data, &holder); err != nil {
			return "", from, fmt.Errorf("%s: chat_template: %w", filepath.Join(dir, from), err)
		}
		if holder.ChatTemplate != "" {
			return holder.ChatTemplate, from, nil
		}
		err = os.ErrNotExist
	}
	return "", from, fmt.Errorf("%s has no chat template: %w", dir, err)
}

// Name says which template it is.
func (t Template) Name() string { return t.name }

// Render writes the conversation as the model's prompt. Every image is one
// <|image_pad|>, which ExpandPads widens. With addGenerationPrompt the text
// ends where the assistant's answer begins.
func (t Template) Render(messages []Message, addGenerationPrompt bool) (string, error) {
	if t.name == "" {
		return "", errors.New("tokenizer: the zero Template renders nothing")
	}
	var s strings.Builder
	if len(messages) > 0 && messages[0].Role != "system" {
		s.WriteString(StartOfTurn + "system\n" + defaultSystem + EndOfTurn + "\n")
	}
	for _, m := range messages {
		s.WriteString(StartOfTurn + m.Role + "\n")
		for _, p := range m.Parts {
			if p.Image {
				s.WriteString(VisionStart + ImagePad + VisionEnd)
			} else {
				s.WriteString(p.Text)
			}
		}
		s.WriteString(EndOfTurn + "\n")
	}
	if addGenerationPrompt {
		s.WriteString(StartOfTurn + "assistant\n")
	}
	return s.String(), nil
}
