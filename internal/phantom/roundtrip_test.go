package phantom

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/rollout"
)

// What Write writes, the loaders must read as the same questions, with no bad
// record, by path and inline.
func TestWrittenSetsAreReadBack(t *testing.T) {
	for name, inline := range map[string]bool{"paths": false, "inline": true} {
		t.Run(name, func(t *testing.T) {
			o := Options{Seed: 6, Captions: 8, SFT: 12, Train: 16, ComplexShare: 0.4, Inline: inline}
			dir := t.TempDir()
			if _, err := Write(context.Background(), dir, o); err != nil {
				t.Fatal(err)
			}
			store, err := blob.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			for _, split := range []string{SplitCaptions, SplitSFT, SplitTrain} {
				set, err := dataset.Open(context.Background(), store, dataset.Options{
					Path: filepath.Join(dir, split+".json"), Prompt: dataset.MicroPrompt(), MaxBadShare: -1})
				if err != nil {
					t.Fatal(err)
				}
				for i := range set.Len() {
					q, err := set.Question(context.Background(), i)
					if err != nil {
						t.Fatal(err)
					}
					compare(t, o, split, i, q)
				}
				if err := set.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func compare(t *testing.T, o Options, split string, i int, q rollout.Question) {
	t.Helper()
	if split == SplitCaptions {
		want := o.CaptionPair(i)
		if q.Kind != rollout.Caption || q.Text != want.Instruction || q.Response != want.Text || len(q.Images()) != 1 {
			t.Errorf("caption %d = %+v, want %+v", i, q, want)
		}
		return
	}
	want, err := o.Question(split, i)
	if err != nil {
		t.Fatal(err)
	}
	if q.ID != want.ID || q.Kind != want.Kind || q.Level != want.Level || q.Text != want.Question || q.Gold != want.Answer || q.Modality != "CFP" {
		t.Errorf("question = %+v, want %+v", q, want)
	}
	if len(q.Images()) != len(want.Scenes) {
		t.Errorf("%s has %d images, want %d", q.ID, len(q.Images()), len(want.Scenes))
	}
	if (q.Response != "") != (split == SplitSFT) {
		t.Errorf("%s has response %q", q.ID, q.Response)
	}
	if split == SplitSFT && (!strings.HasPrefix(q.Response, "<think>") || !strings.HasSuffix(q.Response, "<answer>"+want.Answer+"</answer>")) {
		t.Errorf("%s has response %q", q.ID, q.Response)
	}
}
