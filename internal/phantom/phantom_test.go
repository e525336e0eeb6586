package phantom

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/rollout"
)

var allKinds = []rollout.Kind{rollout.SingleChoice, rollout.MultipleChoice, rollout.TrueFalse, rollout.Open}

func TestDiagnosisRule(t *testing.T) {
	scene := func(cupped bool, ls ...Lesion) Scene {
		s := Scene{Cupped: cupped}
		for i, l := range ls {
			s.Quadrants[i] = Finding{Lesion: l, Marks: 1, Size: 1}
		}
		return s
	}
	cases := []struct {
		scene Scene
		want  string
	}{
		{scene(true, Haemorrhages, Haemorrhages, Haemorrhages), Severe},
		{scene(false, Haemorrhages, Drusen, Drusen, Haemorrhages), Moderate},
		{scene(false, Haemorrhages, Exudates), Moderate},
		{scene(true, Microaneurysms, Drusen), Mild},
		{scene(false, Exudates), Mild},
		{scene(true, Drusen), Degeneration},
		{scene(true), Glaucoma},
		{scene(false), Healthy},
	}
	for _, c := range cases {
		if got := c.scene.Diagnosis(); got != c.want {
			t.Errorf("Diagnosis of %q = %q, want %q", c.scene.Scan([]int{4, 0, 1, 2, 3}), got, c.want)
		}
	}
}

// parseScan reads a scan back into the words per quadrant, whatever the order.
func parseScan(t *testing.T, scan string) [4]string {
	t.Helper()
	parts := strings.Split(scan, ", ")
	if len(parts) != 5 {
		t.Fatalf("scan %q has %d parts, want 5", scan, len(parts))
	}
	var words [4]string
	for q := range 4 {
		for _, part := range parts {
			if rest, ok := strings.CutPrefix(part, Quadrant(q).String()+" "); ok {
				words[q] = rest
			}
		}
		if words[q] == "" {
			t.Fatalf("scan %q lacks the %s quadrant", scan, Quadrant(q))
		}
	}
	return words
}

// The answer of every basic item must follow from the words of its own long
// trace: a solver that reads nothing but the trace must agree.
func TestAnswersFollowFromTheScan(t *testing.T) {
	for i := range 400 {
		item, err := Options{Seed: 3}.Question(SplitTrain, i)
		if err != nil {
			t.Fatal(err)
		}
		scan, _, ok := strings.Cut(item.Long, ": ")
		if !ok {
			t.Fatalf("%s: trace %q has no conclusion", item.ID, item.Long)
		}
		words := parseScan(t, scan)
		count := map[string]int{}
		for _, w := range words {
			count[w]++
		}
		if got := solve(item, count, strings.Contains(scan, "disc cupped")); got != item.Answer {
			t.Errorf("%s: %s\n%s\nanswer %q, by the scan %q", item.ID, item.Question, item.Long, item.Answer, got)
		}
		if hard := 4-count["clear"] >= 2; hard != item.Hard {
			t.Errorf("%s: hard = %v, want %v", item.ID, item.Hard, hard)
		}
	}
}

func solve(item Item, count map[string]int, cupped bool) string {
	affected := 4 - count["clear"]
	names := []string{"microaneurysms", "haemorrhages", "exudates", "drusen"}
	switch {
	case strings.HasPrefix(item.Question, "Count"):
		return string("?ABCD"[affected])
	case strings.HasPrefix(item.Question, "Three or more"):
		if affected >= 3 {
			return "A"
		}
		return "B"
	case strings.HasPrefix(item.Question, "Which lesion is"):
		best := 0
		for i, n := range names {
			if count[n] > count[names[best]] {
				best = i
			}
		}
		return string("ABCD"[best])
	case strings.HasPrefix(item.Question, "Which lesions"):
		var letters []string
		for i, n := range names {
			if count[n] > 0 {
				letters = append(letters, string("ABCD"[i]))
			}
		}
		return strings.Join(letters, ",")
	}
	switch {
	case count["haemorrhages"] >= 3:
		return "severe retinopathy"
	case count["haemorrhages"] > 0:
		return "moderate retinopathy"
	case count["microaneurysms"]+count["exudates"] > 0:
		return "mild retinopathy"
	case count["drusen"] > 0:
		return "macular degeneration"
	case cupped:
		return "glaucoma"
	}
	return "healthy"
}

func TestEveryKindAndAnswerOccurs(t *testing.T) {
	answers := map[rollout.Kind]map[string]int{}
	for i := range 800 {
		item, err := Options{Seed: 5}.Question(SplitTrain, i)
		if err != nil {
			t.Fatal(err)
		}
		if want := allKinds[i%4]; item.Kind != want {
			t.Fatalf("item %d is of kind %s, want %s", i, item.Kind, want)
		}
		if answers[item.Kind] == nil {
			answers[item.Kind] = map[string]int{}
		}
		answers[item.Kind][item.Answer]++
	}
	for kind, want := range map[rollout.Kind]int{
		rollout.SingleChoice: 4, rollout.MultipleChoice: 14, rollout.TrueFalse: 2, rollout.Open: 6,
	} {
		if got := len(answers[kind]); got != want {
			t.Errorf("%s: %d different answers %v, want %d", kind, got, answers[kind], want)
		}
		for answer, n := range answers[kind] {
			if n > 130 {
				t.Errorf("%s: answer %q in %d of 200 items: it can be guessed", kind, answer, n)
			}
		}
	}
}

func TestComplexItems(t *testing.T) {
	o := Options{Seed: 7, ComplexShare: 1}
	for i := range 200 {
		item, err := o.Question(SplitTrain, i)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(item.Scenes); n < 2 || n > 3 {
			t.Fatalf("%s has %d images, want 2 or 3", item.ID, n)
		}
		if item.Level != rollout.Complex || !item.Hard || !strings.HasPrefix(item.Question, "Age ") {
			t.Errorf("%s: not a hard vignette: %+v", item.ID, item)
		}
		scan, _, _ := strings.Cut(item.Long, ": ")
		parts := strings.Split(scan, "; ")
		if len(parts) != len(item.Scenes) {
			t.Fatalf("%s: trace scans %d images of %d", item.ID, len(parts), len(item.Scenes))
		}
		if got := solveComplex(t, item, parts); got != item.Answer {
			t.Errorf("%s: %s\n%s\nanswer %q, by the scans %q", item.ID, item.Question, item.Long, item.Answer, got)
		}
	}
}

func solveComplex(t *testing.T, item Item, parts []string) string {
	var letters []string
	best, bestAffected, rank := "", -1, len(diagnoses)
	all := "A"
	for i, part := range parts {
		_, scan, _ := strings.Cut(part, " ")
		words, count := parseScan(t, scan), map[string]int{}
		for _, w := range words {
			count[w]++
		}
		affected := 4 - count["clear"]
		if affected > bestAffected {
			bestAffected, best = affected, string("ABC"[i])
		}
		if affected == 0 {
			all = "B"
		}
		if count["haemorrhages"] > 0 {
			letters = append(letters, string("ABC"[i]))
		}
		d := solve(Item{}, count, strings.Contains(scan, "disc cupped"))
		for k, name := range diagnoses {
			if name == d {
				rank = min(rank, k)
			}
		}
	}
	switch item.Kind {
	case rollout.SingleChoice:
		return best
	case rollout.MultipleChoice:
		return strings.Join(letters, ",")
	case rollout.TrueFalse:
		return all
	}
	return diagnoses[rank]
}

func TestRenderShowsTheLesionInItsQuadrant(t *testing.T) {
	for _, l := range lesions {
		for q := range 4 {
			clear := Scene{Contrast: 1, Seed: 11}
			with := clear
			with.Quadrants[q] = Finding{Lesion: l, Marks: 3, Size: 1}
			const size = 84
			a, b := Render(clear, size), Render(with, size)
			changed := [3][3]int{}
			for y := range size {
				for x := range size {
					if a.RGBAAt(x, y) != b.RGBAAt(x, y) {
						changed[y/28][x/28]++
					}
				}
			}
			x, y := 2*(q%2), 2*(q/2)
			if changed[y][x] < 10 {
				t.Errorf("%s, %s: only %d pixels changed in its cell", l, Quadrant(q), changed[y][x])
			}
			if centre := changed[1][1]; centre > 0 {
				t.Errorf("%s, %s: %d pixels changed at the macula", l, Quadrant(q), centre)
			}
		}
	}
}

func TestRenderCupping(t *testing.T) {
	bright := func(cupped bool) int {
		n := 0
		for img, i := Render(Scene{Cupped: cupped, Seed: 4}, 84), 0; i < len(img.Pix); i += 4 {
			if img.Pix[i+2] > 180 { // only the cup is nearly white
				n++
			}
		}
		return n
	}
	if normal, cupped := bright(false), bright(true); cupped < 3*normal || normal == 0 {
		t.Errorf("bright pixels of the cup: normal %d, cupped %d, want at least three times as many", normal, cupped)
	}
}

func TestWriteIsDeterministicAndSplitsShareNoImage(t *testing.T) {
	o := Options{Seed: 9, Captions: 12, SFT: 10, Train: 12, InDomain: 8, OutOfDomain: 8, ComplexShare: 0.3}
	first, second := t.TempDir(), t.TempDir()
	summary, err := Write(context.Background(), first, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Write(context.Background(), second, o); err != nil {
		t.Fatal(err)
	}
	owner := map[string]string{}
	for split, name := range summary.Files {
		a, b := read(t, filepath.Join(first, name)), read(t, filepath.Join(second, name))
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs between two runs", name)
		}
		var records []dataset.Record
		if err := json.Unmarshal(a, &records); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(records) != summary.Records[split] {
			t.Errorf("%s holds %d records, the summary says %d", name, len(records), summary.Records[split])
		}
		for _, rec := range records {
			if (rec.Reason != "") != (split == SplitSFT) {
				t.Errorf("%s, %s: reason %q", name, rec.ID, rec.Reason)
			}
			for _, image := range rec.Image {
				if !bytes.Equal(read(t, filepath.Join(first, image)), read(t, filepath.Join(second, image))) {
					t.Errorf("%s differs between two runs", image)
				}
				if other, ok := owner[image]; ok && other != split {
					t.Errorf("image %s is in %s and %s", image, other, split)
				}
				owner[image] = split
			}
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestItemsDoNotDependOnCounts(t *testing.T) {
	small, err := Options{Seed: 1, Train: 4}.Question(SplitTrain, 3)
	if err != nil {
		t.Fatal(err)
	}
	large, err := Options{Seed: 1, Train: 4000, SFT: 7}.Question(SplitTrain, 3)
	if err != nil {
		t.Fatal(err)
	}
	if small.Long != large.Long || small.Scenes[0] != large.Scenes[0] {
		t.Error("item 3 of train depends on the number of records")
	}
}

func TestLongShareIsKept(t *testing.T) {
	o := Options{LongShare: 0.25}.withDefaults()
	long := map[rollout.Kind]int{}
	for i := range 160 {
		item, err := o.Question(SplitSFT, i)
		if err != nil {
			t.Fatal(err)
		}
		if o.reason(item, i) == item.Long {
			long[item.Kind]++
		}
	}
	for _, kind := range allKinds {
		if long[kind] != 10 {
			t.Errorf("%s: %d of 40 traces scan, want 10", kind, long[kind])
		}
	}
}

func TestOptionsReportEverything(t *testing.T) {
	err := Options{Size: 5, Train: -1, Kinds: []rollout.Kind{"essay"}, LongShare: 2, ComplexShare: -1}.Validate()
	if !errors.Is(err, ErrOptions) {
		t.Fatalf("Validate = %v", err)
	}
	for _, part := range []string{"size is 5", "train is -1", "essay", "long share is 2", "complex share is -1"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not mention %q", err, part)
		}
	}
	if _, err := Write(context.Background(), t.TempDir(), Options{Size: 5}); !errors.Is(err, ErrOptions) {
		t.Errorf("Write with bad options = %v", err)
	}
}

func TestWriteStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	if _, err := Write(ctx, dir, Options{Train: 3}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Write = %v, want cancelled", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "train.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a half-written train.json was left: %v", err)
	}
}

func TestCorpusHoldsNoSplitItem(t *testing.T) {
	texts, err := Corpus(Options{Seed: 2})
	if err != nil {
		t.Fatal(err)
	}
	seen := strings.Join(texts, "\n")
	for _, word := range []string{"microaneurysms", "<think>at a glance, ", "glaucoma", "lower right", "</answer>", "assistant", "Think, then answer.", "pressure"} {
		if !strings.Contains(seen, word) {
			t.Errorf("corpus lacks %q", word)
		}
	}
}
