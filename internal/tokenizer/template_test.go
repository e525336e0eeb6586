package tokenizer_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

func template(t testing.TB) tokenizer.Template {
	t.Helper()
	tm, err := tokenizer.TemplateOf(tokenizer.QwenTemplate)
	if err != nil {
		t.Fatal(err)
	}
	return tm
}

func text(role, content string) tokenizer.Message {
	return tokenizer.Message{Role: role, Parts: []tokenizer.Part{{Text: content}}}
}

func TestRendering(t *testing.T) {
	tm := template(t)
	image := tokenizer.Part{Image: true}
	const system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
	for _, test := range []struct {
		name     string
		messages []tokenizer.Message
		generate bool
		want     string
	}{
		{"nothing", nil, true, "<|im_start|>assistant\n"},
		{"a question", []tokenizer.Message{text("user", "Hi")}, true,
			system + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"},
		{"no prompt", []tokenizer.Message{text("user", "Hi")}, false,
			system + "<|im_start|>user\nHi<|im_end|>\n"},
		{"own system text", []tokenizer.Message{text("system", "Be brief."), text("user", "Hi")}, false,
			"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"},
		{"system text later", []tokenizer.Message{text("user", "Hi"), text("system", "s")}, false,
			system + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>system\ns<|im_end|>\n"},
		{"images", []tokenizer.Message{{Role: "user", Parts: []tokenizer.Part{{Text: "a"}, image, image, {Text: "b"}}}}, false,
			system + "<|im_start|>user\na<|vision_start|><|image_pad|><|vision_end|>" +
				"<|vision_start|><|image_pad|><|vision_end|>b<|im_end|>\n"},
		{"white space stays", []tokenizer.Message{text("user", " \n x \n")}, false,
			system + "<|im_start|>user\n \n x \n<|im_end|>\n"},
		{"an empty turn", []tokenizer.Message{{Role: "user"}}, false, system + "<|im_start|>user\n<|im_end|>\n"},
	} {
		got, err := tm.Render(test.messages, test.generate)
		if err != nil || got != test.want {
			t.Errorf("%s: %q, %v, want %q", test.name, got, err, test.want)
		}
	}
	if _, err := (tokenizer.Template{}).Render(nil, true); err == nil {
		t.Error("the zero template rendered")
	}
}

func TestUnknownTemplatesAreRefused(t *testing.T) {
	_, err := tokenizer.TemplateOf("{{ messages }}")
	var unknown *tokenizer.UnknownTemplateError
	if !errors.As(err, &unknown) || len(unknown.Digest) != 64 || !strings.Contains(err.Error(), unknown.Digest) {
		t.Errorf("error %v", err)
	}
	if tm, err := tokenizer.TemplateOf("\n" + tokenizer.QwenTemplate + "\n\n"); err != nil || tm.Name() == "" {
		t.Errorf("white space around the text matters: %v", err)
	}
}

func TestWhereTemplatesAreFound(t *testing.T) {
	quoted := strings.NewReplacer("\n", `\n`, `\n`, `\\n`, `"`, `\"`).Replace(tokenizer.QwenTemplate)
	good := `{"chat_template": "` + quoted + `"}`
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string // part of the error; empty for none
	}{
		{"jinja", map[string]string{"chat_template.jinja": tokenizer.QwenTemplate}, ""},
		{"json", map[string]string{"chat_template.json": good}, ""},
		{"tokenizer config", map[string]string{"tokenizer_config.json": good}, ""},
		{"json without it", map[string]string{"chat_template.json": "{}", "tokenizer_config.json": good}, ""},
		{"jinja comes first", map[string]string{"chat_template.jinja": "x", "tokenizer_config.json": good}, "chat_template.jinja"},
		{"none", nil, "has no chat template"},
		{"empty", map[string]string{"tokenizer_config.json": "{}"}, "has no chat template"},
		{"a list of them", map[string]string{"tokenizer_config.json": `{"chat_template": [{"name": "a"}]}`}, "tokenizer_config.json"},
		{"broken", map[string]string{"chat_template.json": "{"}, "chat_template.json"},
	} {
		dir := t.TempDir()
		for name, text := range test.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		tm, err := tokenizer.OpenTemplate(dir)
		switch {
		case test.want == "" && (err != nil || tm.Name() != template(t).Name()):
			t.Errorf("%s: %q, %v", test.name, tm.Name(), err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error %v lacks %q", test.name, err, test.want)
		}
	}
}

func TestExpandingPads(t *testing.T) {
	const pad = 9
	for _, test := range []struct {
		ids    []int32
		counts []int
		want   []int32
	}{
		{[]int32{1, 2}, nil, []int32{1, 2}},
		{[]int32{1, pad, 2, pad}, []int{3, 1}, []int32{1, pad, pad, pad, 2, pad}},
		{[]int32{pad, pad}, []int{2, 2}, []int32{pad, pad, pad, pad}},
	} {
		if got, err := tokenizer.ExpandPads(test.ids, pad, test.counts); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%v with %v: %v, %v", test.ids, test.counts, got, err)
		}
	}
	for _, counts := range [][]int{nil, {1, 1}, {1, 1, 1}} {
		_, err := tokenizer.ExpandPads([]int32{pad}, pad, counts)
		var typed *tokenizer.PadCountError
		if !errors.As(err, &typed) || typed.Pads != 1 || typed.Images != len(counts) {
			t.Errorf("1 pad and %d images: %v", len(counts), err)
		}
	}
	if _, err := tokenizer.ExpandPads([]int32{pad}, pad, []int{0}); err == nil {
		t.Error("an image of no tokens was accepted")
	}
}
