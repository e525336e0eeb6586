package phantom

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/dataset"
)

func TestWriteReportsAFolderThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(context.Background(), filepath.Join(file, "below"), Options{Train: 1}); err == nil {
		t.Error("a folder below a file was written to")
	}
	// A folder where the record file should go: nothing half-written is left.
	if err := os.MkdirAll(filepath.Join(dir, "train.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(context.Background(), dir, Options{Train: 1}); err == nil || !strings.Contains(err.Error(), "split train") {
		t.Errorf("Write = %v, want an error that names the split", err)
	}
}

func TestSplitsThatAreNotAskedForAreNotWritten(t *testing.T) {
	dir := t.TempDir()
	summary, err := Write(context.Background(), dir, Options{Train: 4})
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 || filepath.Base(files[0]) != "train.json" || len(summary.Files) != 1 || summary.Images[SplitTrain] != 4 {
		t.Errorf("files %v, summary %+v", files, summary)
	}
}

func TestInlineSetsNeedNoFiles(t *testing.T) {
	byPath, inline := t.TempDir(), t.TempDir()
	if _, err := Write(context.Background(), byPath, Options{Train: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(context.Background(), inline, Options{Train: 4, Inline: true}); err != nil {
		t.Fatal(err)
	}
	records := func(dir string) (recs []dataset.Record) {
		if err := json.Unmarshal(read(t, filepath.Join(dir, "train.json")), &recs); err != nil {
			t.Fatal(err)
		}
		return recs
	}
	a, b := records(byPath), records(inline)
	for i := range a {
		data, err := base64.StdEncoding.DecodeString(b[i].Image[0])
		if err != nil {
			t.Fatal(err)
		}
		if string(data) != string(read(t, filepath.Join(byPath, a[i].Image[0]))) {
			t.Errorf("record %d: the inline image is not that of the file", i)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(inline, "images")); err == nil && len(entries) > 0 {
		t.Errorf("%d image files beside inline images", len(entries))
	}
}

// The same picture in two splits is refused, whatever led to it.
func TestAnImageOfTwoSplitsIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := &writer{options: Options{}.withDefaults(), dir: dir, owner: map[string]string{}, summary: Summary{Images: map[string]int{}}}
	s := Scene{Seed: 1, Contrast: 1}
	for range 2 {
		if _, err := w.image(SplitTrain, s); err != nil {
			t.Fatal(err)
		}
	}
	if w.summary.Images[SplitTrain] != 1 {
		t.Errorf("one picture counts as %d", w.summary.Images[SplitTrain])
	}
	if _, err := w.image(SplitInDomain, s); err == nil || !strings.Contains(err.Error(), "also in split train") {
		t.Errorf("image = %v", err)
	}
}

func TestCorpusIsNoSplit(t *testing.T) {
	o := Options{Seed: 3}
	texts, err := Corpus(o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Corpus(o)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(texts, "|") != strings.Join(again, "|") {
		t.Error("two corpora of one seed differ")
	}
	for split := range map[string]bool{SplitTrain: true, SplitSFT: true, SplitInDomain: true} {
		same := 0
		for i := range 40 {
			a, err := o.Question(split, i)
			if err != nil {
				t.Fatal(err)
			}
			b, err := o.Question("corpus", i)
			if err != nil {
				t.Fatal(err)
			}
			if a.Long == b.Long {
				same++
			}
		}
		if same > 5 {
			t.Errorf("%d of 40 traces of %s are the corpus's", same, split)
		}
	}
}
