package encode_test

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/encode"
	"github.com/uadt-train/uadt-train/internal/micro"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/rollout"
)

// held keeps images in memory by digest.
type held map[string][]byte

var errGone = errors.New("image is gone")

func (h held) Get(ctx context.Context, digest string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, ok := h[digest]
	if !ok {
		return nil, errGone
	}
	return data, nil
}

// checkpoint writes a micro model.
func checkpoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "m")
	if _, err := micro.Init(dir, micro.Options{Corpus: []string{"one two one two"}}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func blank(t *testing.T, w, h int) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := png.Encode(&out, image.NewRGBA(image.Rect(0, 0, w, h))); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func ask(parts ...rollout.Part) rollout.Question {
	return rollout.Question{ID: "q7", Messages: []rollout.Message{{Role: "user", Parts: parts}}}
}

func shown(digest string) rollout.Part {
	return rollout.Part{Image: &rollout.Image{Digest: digest, MediaType: "image/png"}}
}

func TestEncoding(t *testing.T) {
	dir := checkpoint(t)
	images := held{"a": blank(t, 84, 84), "b": blank(t, 56, 112)}
	e, err := encode.Open(dir, 0, images)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Encode(context.Background(), ask(rollout.Part{Text: "one"}, shown("a"), shown("b"), rollout.Part{Text: "two"}), "two one")
	if err != nil {
		t.Fatal(err)
	}
	pads := func(n int) string {
		return tokenizer.VisionStart + strings.Repeat(tokenizer.ImagePad, n) + tokenizer.VisionEnd
	}
	want := "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\none" + pads(9) + pads(8) +
		"two<|im_end|>\n<|im_start|>assistant\n"
	if text := tok.Decode(got.Prompt, false); text != want {
		t.Errorf("prompt %q, want %q", text, want)
	}
	end, _ := tok.ID(tokenizer.EndOfTurn)
	if want := append(tok.Encode("two one"), end); !slices.Equal(got.Response, want) {
		t.Errorf("response %v, want %v", got.Response, want)
	}
	empty, err := e.Encode(context.Background(), ask(), "")
	if err != nil || !slices.Equal(empty.Response, []int32{end}) {
		t.Errorf("an empty response is %v, %v", empty.Response, err)
	}
}

func TestThePixelBudgetHasOneOwner(t *testing.T) {
	dir := checkpoint(t)
	images := held{"a": blank(t, 500, 500)}
	for budget, tokens := range map[int]int{0: 16, 28 * 28: 1, 9 * 28 * 28: 9, 100 * 28 * 28: 100} {
		e, err := encode.Open(dir, budget, images)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := e.Prompt(context.Background(), ask(shown("a")).Messages)
		if err != nil {
			t.Fatal(err)
		}
		tok, err := tokenizer.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		pad, _ := tok.ID(tokenizer.ImagePad)
		n := 0
		for _, v := range ids {
			if v == pad {
				n++
			}
		}
		if n != tokens {
			t.Errorf("budget %d: %d tokens, want %d", budget, n, tokens)
		}
	}
}

func TestWhatCannotBeEncodedIsNamed(t *testing.T) {
	e, err := encode.Open(checkpoint(t), 0, held{"a": blank(t, 84, 84), "broken": []byte("\x89PNG\r\n\x1a\nx"), "empty": nil})
	if err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		q    rollout.Question
		is   error
		want []string
	}{
		{"no such image", context.Background(), ask(shown("a"), shown("zz")), errGone, []string{"question q7", "image 2", "zz"}},
		{"broken image", context.Background(), ask(shown("broken")), vision.ErrImage, []string{"image 1 (broken)", "PNG"}},
		{"empty image", context.Background(), ask(shown("empty")), vision.ErrImage, []string{"image 1 (empty)"}},
		{"a pad in the text", context.Background(), ask(rollout.Part{Text: "<|image_pad|>"}, shown("a")), nil, []string{"2 image pads for 1 images"}},
		{"cancelled", cancelled, ask(shown("a")), context.Canceled, []string{"q7"}},
	} {
		_, err := e.Encode(test.ctx, test.q, "x")
		if err == nil || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v lacks %q", test.name, err, part)
			}
		}
	}
}

func TestIncompleteDirectoriesAreRefused(t *testing.T) {
	for file, text := range map[string]string{
		"tokenizer.json":           "{",
		"chat_template.jinja":      "{{ other }}",
		"preprocessor_config.json": `{"resample": 0}`,
	} {
		dir := checkpoint(t)
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := encode.Open(dir, 0, held{}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s %q: %v", file, text, err)
		}
	}
	dir := checkpoint(t)
	if err := os.Remove(filepath.Join(dir, "preprocessor_config.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := encode.Open(dir, 0, held{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no preprocessor_config.json: %v", err)
	}
	if _, err := encode.New(encode.Options{}); err == nil {
		t.Error("nothing was accepted")
	}
	tok, err := tokenizer.Train(nil, tokenizer.MinVocab())
	if err != nil {
		t.Fatal(err)
	}
	template, err := tokenizer.TemplateOf(tokenizer.QwenTemplate)
	if err != nil {
		t.Fatal(err)
	}
	o := encode.Options{Tokenizer: tok, Template: template, Images: held{}}
	if _, err := encode.New(o); err == nil || !strings.Contains(err.Error(), "patch_size") {
		t.Errorf("the zero vision.Config: %v", err)
	}
	o.Vision = vision.DefaultConfig()
	if _, err := encode.New(o); err != nil {
		t.Error(err)
	}
}
