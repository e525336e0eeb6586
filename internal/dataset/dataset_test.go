package dataset

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/rollout"
)

// picture is a small image whose colour tells it from others.
func picture(shade uint8) image.Image {
	img := image.NewRGBA(image.Rect(0, 0, 12, 10))
	for i := range img.Pix {
		img.Pix[i] = shade
	}
	img.Set(3, 4, color.RGBA{255, shade, 0, 255})
	return img
}

func pngOf(t testing.TB, shade uint8) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := png.Encode(&out, picture(shade)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func b64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

func write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func store(t testing.TB) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open opens the file with no bad records allowed unless share says so.
func open(t testing.TB, o Options) *Set {
	t.Helper()
	if o.MaxBadShare == 0 {
		o.MaxBadShare = -1
	}
	s, err := Open(context.Background(), store(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func question(t testing.TB, s *Set, i int) rollout.Question {
	t.Helper()
	q, err := s.Question(context.Background(), i)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func qa(question, answer string) []Turn {
	return []Turn{{From: "human", Value: question}, {From: "gpt", Value: answer}}
}

func TestEveryShapeGivesTheSameQuestion(t *testing.T) {
	one := pngOf(t, 40)
	const text, asked = "What is seen?\nA. drusen\nB. a scar", "What is seen?"
	rec := func(image string) string {
		return fmt.Sprintf(`{"image":%s,"conversations":%s}`, image, jsonOf(t, qa(text, "B")))
	}
	files := map[string]string{
		"list.json":   "[" + rec(`["`+b64(one)+`"]`) + "]",
		"bare.json":   "[" + rec(`"`+b64(one)+`"`) + "]",
		"path.json":   "\n [ " + rec(`["pic.png"]`) + " ]\n",
		"url.json":    "\ufeff[" + rec(`"data:image/png;base64,`+b64(one)+`"`) + "]",
		"lines.jsonl": rec(`"pic.png"`) + "\n\n",
		"lines.json":  rec(`"pic.png"`) + "\n",
		"omni.json": `[{"dataset":"x","question_id":"x_1","question":"What is seen?","gt_answer":"a scar",
			"image_path":"pic.png","option_A":"drusen","option_B":"a scar","modality_type":"Fundus Photography"}]`,
		"vlm.tsv": "index\timage\tquestion\tA\tB\tanswer\n0\t" + b64(one) + "\t" + asked + "\tdrusen\ta scar\tB\n",
		"row.csv": "question,answer,base64,A,B\n" + asked + ",B," + b64(one) + ",drusen,a scar\n",
	}
	dir := t.TempDir()
	write(t, dir, "pic.png", string(one))
	for name, content := range files {
		t.Run(name, func(t *testing.T) {
			s := open(t, Options{Path: write(t, dir, name, content), Prompt: MicroPrompt()})
			if s.Len() != 1 {
				t.Fatalf("Len = %d, want 1", s.Len())
			}
			q := question(t, s, 0)
			if q.Kind != rollout.SingleChoice || q.Gold != "B" || q.Text != text || q.Level != rollout.Basic {
				t.Errorf("question = %+v", q)
			}
			images := q.Images()
			if len(images) != 1 || images[0].Digest != blob.DigestOf(one) || images[0].MediaType != "image/png" {
				t.Errorf("images = %v, want %s", images, blob.DigestOf(one))
			}
		})
	}
}

func TestKeysOfAnImageCSV(t *testing.T) {
	dir := t.TempDir()
	images := write(t, dir, "images.csv", "image_id,base64\ncase 1/left.jpg,"+b64(pngOf(t, 1))+"\nother,"+b64(pngOf(t, 2))+"\n")
	path := write(t, dir, "q.json", `[{"image":["case 1/left.jpg","other"],"conversations":`+jsonOf(t, qa("What?", "glaucoma"))+`}]`)
	q := question(t, open(t, Options{Path: path, Images: images}), 0)
	if got := q.Images(); len(got) != 2 || got[0].Digest != blob.DigestOf(pngOf(t, 1)) || got[1].Digest != blob.DigestOf(pngOf(t, 2)) {
		t.Errorf("images = %v", got)
	}
	if q.Kind != rollout.Open || q.Gold != "glaucoma" {
		t.Errorf("question = %+v", q)
	}
	twice := write(t, dir, "twice.csv", "id,base64\na,"+b64(pngOf(t, 1))+"\na,"+b64(pngOf(t, 2))+"\n")
	if _, err := Open(context.Background(), store(t), Options{Path: path, Images: twice}); !errors.Is(err, ErrFormat) {
		t.Errorf("a repeated key: %v", err)
	}
}

func TestTSVRowsThatShareAnImage(t *testing.T) {
	path := write(t, t.TempDir(), "shared.tsv", "index\timage\tquestion\tA\tB\tanswer\n"+
		"7\t"+b64(pngOf(t, 3))+"\tfirst?\tx\ty\tA\n8\t7\tsecond?\tx\ty\tB\n9\t['"+b64(pngOf(t, 4))+"', '"+b64(pngOf(t, 5))+"']\tthird?\tx\ty\tB\n")
	s := open(t, Options{Path: path})
	if a, b := question(t, s, 0).Images(), question(t, s, 1).Images(); a[0] != b[0] {
		t.Errorf("row 8 has image %v, want that of row 7, %v", b, a)
	}
	if got := question(t, s, 2).Images(); len(got) != 2 {
		t.Errorf("a list cell gave %d images, want 2", len(got))
	}
}

func TestCodecs(t *testing.T) {
	var jpg, bm, tf bytes.Buffer
	for _, err := range []error{
		jpeg.Encode(&jpg, picture(9), nil), bmp.Encode(&bm, picture(9)), tiff.Encode(&tf, picture(9), nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// A 1 x 1 lossy WebP.
	webp, err := base64.StdEncoding.DecodeString("UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA")
	if err != nil {
		t.Fatal(err)
	}
	for want, data := range map[string][]byte{
		"image/jpeg": jpg.Bytes(), "image/bmp": bm.Bytes(), "image/tiff": tf.Bytes(), "image/webp": webp, "image/png": pngOf(t, 9),
	} {
		got, err := inspect(data, Limits{}.withDefaults())
		if err != nil || got != want {
			t.Errorf("inspect = %q, %v, want %q", got, err, want)
		}
		if want == "image/tiff" {
			continue // has no end marker
		}
		if _, err := inspect(data[:len(data)-6], Limits{}.withDefaults()); !errors.Is(err, ErrImage) {
			t.Errorf("%s cut short: %v, want ErrImage", want, err)
		}
	}
	if _, err := inspect(pngOf(t, 1), Limits{Pixels: 100}.withDefaults()); !errors.Is(err, ErrImage) {
		t.Errorf("120 pixels at a limit of 100: %v", err)
	}
	if _, err := inspect(pngOf(t, 1), Limits{Bytes: 10}.withDefaults()); !errors.Is(err, ErrImage) {
		t.Errorf("too many bytes: %v", err)
	}
}

func TestBadRecordsAreCountedWithTheirReason(t *testing.T) {
	good := fmt.Sprintf(`{"image":%q,"conversations":%s}`, b64(pngOf(t, 1)), jsonOf(t, qa("True?", "True")))
	bad := []struct{ record, reason string }{
		{`{"image":"` + b64(pngOf(t, 1)) + `","conversations":[{"from":"human","value":"x"}]}`, "1 human and 0 gpt"},
		{`{"image":"nowhere.png","conversations":` + jsonOf(t, qa("x", "y")) + `}`, "nowhere.png"},
		{`{"image":["data:image/png;base64,` + b64(pngOf(t, 1)[:60]) + `"],"conversations":` + jsonOf(t, qa("x", "y")) + `}`, "truncated"},
		{`{"image":"data:image/png;base64,","conversations":` + jsonOf(t, qa("x", "y")) + `}`, "0 bytes"},
		{`{"conversations":` + jsonOf(t, qa("x", "y")) + `}`, "no image"},
		{`{"image":5}`, "bad format"},
		{`17`, "want an object"},
		{`{"image":"a" "b"}`, "bad format"},
		{`{"image":"` + b64(pngOf(t, 1)) + `","conversations":` + jsonOf(t, qa("x", " ")) + `}`, "answer is empty"},
		{`{"image":"` + b64(pngOf(t, 1)) + `","question_type":"essay","conversations":` + jsonOf(t, qa("x", "y")) + `}`, "essay"},
	}
	records := []string{good}
	for _, b := range bad {
		records = append(records, b.record)
	}
	path := write(t, t.TempDir(), "mixed.json", "["+strings.Join(records, ",\n")+"]")
	var many *TooManyBadError
	if _, err := Open(context.Background(), store(t), Options{Path: path}); !errors.As(err, &many) {
		t.Fatalf("Open = %v, want TooManyBadError", err)
	}
	if many.Bad != len(bad) || many.Records != len(bad)+1 || !strings.Contains(many.Error(), "mixed.json: record 1:") {
		t.Errorf("error = %v", many)
	}
	for round := range 2 { // the second round reads the check from the index file
		s := open(t, Options{Path: path, MaxBadShare: 0.95})
		if s.Len() != 1 || len(s.Bad()) != len(bad) {
			t.Fatalf("round %d: %d good and %d bad, want 1 and %d", round, s.Len(), len(s.Bad()), len(bad))
		}
		for i, b := range s.Bad() {
			if b.Record != i+1 || b.File != path || !strings.Contains(b.Error(), bad[i].reason) {
				t.Errorf("bad record %d: %v, want reason %q", i+1, b, bad[i].reason)
			}
		}
		if q := question(t, s, 0); q.Kind != rollout.TrueFalse || q.Gold != "A" || q.ID != "mixed-000000" {
			t.Errorf("question = %+v", q)
		}
	}
}

func TestBrokenFilesNameThePlace(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ content, want string }{
		"empty.json":    {"", "no JSON array"},
		"none.json":     {"[]", "no records"},
		"open.json":     {`[{"a":1}, {"b":"`, "record 1, from byte 10"},
		"unclosed.json": {`[{"a":1},`, "not closed after record 0"},
		"tail.json":     {`[{"a":1}] x`, "byte 10 follows"},
		"text.json":     {"hello", `byte 0 is 'h'`},
		"empty.csv":     {"", "no header"},
		"onlyhead.tsv":  {"index\timage\n", "no records"},
	} {
		_, err := Open(context.Background(), store(t), Options{Path: write(t, dir, name, c.content)})
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want ErrFormat with %q", name, err, c.want)
		}
	}
	if _, err := Open(context.Background(), store(t), Options{Path: filepath.Join(dir, "missing.json")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Open(context.Background(), store(t), Options{Path: dir}); err == nil {
		t.Error("a folder was opened")
	}
}

func TestComplexCaptionAndReasonRecords(t *testing.T) {
	pic := b64(pngOf(t, 1))
	path := write(t, t.TempDir(), "mix_OCT.json", "["+strings.Join([]string{
		`{"image":"` + pic + `","caption":"a disc"}`,
		`{"image":["` + strings.Repeat(pic+`","`, 7) + pic + `"],"pmcid":"PMC1","title":"t","caption":"c","reason":"it is so","conversations":` + jsonOf(t, qa("A 40-year-old ... diagnosis?", "AMD")) + `}`,
		`{"image":"` + pic + `","question_type":"caption","conversations":` + jsonOf(t, qa("Count them.", "two")) + `}`,
	}, ",")+"]")
	s := open(t, Options{Path: path, Prompt: MicroPrompt()})
	caption, complexQ, asked := question(t, s, 0), question(t, s, 1), question(t, s, 2)
	if caption.Kind != rollout.Caption || caption.Response != "a disc" || caption.Text != "Describe the image." || caption.Modality != "OCT" {
		t.Errorf("caption = %+v", caption)
	}
	if complexQ.Level != rollout.Complex || complexQ.Kind != rollout.Open || len(complexQ.Images()) != 6 || s.Cut() != 2 ||
		complexQ.Response != "<think>it is so</think><answer>AMD</answer>" {
		t.Errorf("complex = %+v, cut %d", complexQ, s.Cut())
	}
	if asked.Kind != rollout.Caption || asked.Text != "Count them." || asked.Response != "two" || asked.Gold != "" {
		t.Errorf("asked caption = %+v", asked)
	}
}
