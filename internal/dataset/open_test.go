package dataset

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// plain is a record about pic.png with the given answer.
func plain(t testing.TB, answer string) string {
	return fmt.Sprintf(`{"image":"pic.png","conversations":%s}`, jsonOf(t, qa("What? A. x B. y C. z", answer)))
}

// folder holds pic.png and one file of records.
func folder(t testing.TB, name string, records ...string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "pic.png", string(pngOf(t, 1)))
	return write(t, dir, name, "["+strings.Join(records, ",\n")+"]")
}

func TestHintsInTheName(t *testing.T) {
	cases := []struct {
		name, answer, modality string
		kind                   rollout.Kind
	}{
		{"multi_choice_test_data_CFP.json", "B", "CFP", rollout.MultipleChoice},
		{"single_choice_test_data_FFA.json", "B", "FFA", rollout.SingleChoice},
		{"single_choice_test_data_OCT.json", "C", "OCT", rollout.SingleChoice},
		{"complex_reason.json", "B", "", rollout.SingleChoice},
		{"other.json", "A,B", "", rollout.MultipleChoice},
	}
	for _, c := range cases {
		q := question(t, open(t, Options{Path: folder(t, c.name, plain(t, c.answer))}), 0)
		if q.Kind != c.kind || q.Modality != c.modality || q.Split != strings.TrimSuffix(c.name, ".json") {
			t.Errorf("%s: kind %s, modality %q, split %q", c.name, q.Kind, q.Modality, q.Split)
		}
	}
}

func TestOptionsOverrideTheName(t *testing.T) {
	path := folder(t, "multi_choice_CFP.json", plain(t, "B"))
	q := question(t, open(t, Options{Path: path, Kind: rollout.SingleChoice, Modality: "slit lamp", Name: "mine"}), 0)
	if q.Kind != rollout.SingleChoice || q.Modality != "slit lamp" || q.ID != "mine-000000" {
		t.Errorf("question = %+v", q)
	}
}

func TestImageRoot(t *testing.T) {
	path := write(t, t.TempDir(), "a.json", "["+plain(t, "A")+"]")
	images := t.TempDir()
	write(t, images, "pic.png", string(pngOf(t, 7)))
	if s := open(t, Options{Path: path, ImageRoot: images}); s.Len() != 1 {
		t.Errorf("%d records with an image root", s.Len())
	}
	if _, err := Open(context.Background(), store(t), Options{Path: path, NoIndexFile: true}); err == nil {
		t.Error("the image was found without the root")
	}
}

// The limit on bad records is a share that may be reached and not passed.
func TestLimitOnBadRecords(t *testing.T) {
	records := []string{`{"image":"nowhere.png"}`}
	for range 9 {
		records = append(records, plain(t, "A"))
	}
	path := folder(t, "a.json", records...)
	if s := open(t, Options{Path: path, MaxBadShare: 0.1}); s.Len() != 9 || question(t, s, 0).ID != "a-000001" {
		t.Errorf("%d good records", s.Len())
	}
	var many *TooManyBadError
	for _, share := range []float64{0, 0.09, -1} { // 0 is the default of 1 %
		if _, err := Open(context.Background(), store(t), Options{Path: path, MaxBadShare: share}); !errors.As(err, &many) {
			t.Errorf("share %g: %v", share, err)
		}
	}
	all := folder(t, "b.json", `{}`, `{}`)
	if _, err := Open(context.Background(), store(t), Options{Path: all, MaxBadShare: 1}); !errors.As(err, &many) {
		t.Errorf("a file of bad records alone: %v", err)
	}
}

// A check made under other options is made again.
func TestChangedOptionsCheckAgain(t *testing.T) {
	path := folder(t, "a.json", plain(t, "A"), plain(t, "B"))
	open(t, Options{Path: path})
	if _, err := Open(context.Background(), store(t), Options{Path: path, Limits: Limits{Pixels: 10}}); err == nil {
		t.Error("the check at the default limit was believed at a lower one")
	}
	if s := open(t, Options{Path: path}); s.Len() != 2 {
		t.Errorf("back at the default limit: %d records", s.Len())
	}
}

func TestNoIndexFile(t *testing.T) {
	path := folder(t, "a.json", plain(t, "A"))
	open(t, Options{Path: path, NoIndexFile: true})
	if _, err := os.Stat(path + ".index"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an index file was written: %v", err)
	}
	open(t, Options{Path: path})
	if _, err := os.Stat(path + ".index.part"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a half-written index was left: %v", err)
	}
}

func TestOpenStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	path := folder(t, "a.json", plain(t, "A"))
	s := open(t, Options{Path: path, NoIndexFile: true})
	cancel()
	if _, err := Open(ctx, store(t), Options{Path: path}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v", err)
	}
	if _, err := s.Question(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Question = %v", err)
	}
}

// full is a store that takes nothing.
type full struct{}

func (full) Put([]byte) (string, error) { return "", errors.New("no space left") }

// A store that fails is not a bad record: it must stop the source.
func TestAFullStoreIsNoBadRecord(t *testing.T) {
	s, err := Open(context.Background(), full{}, Options{Path: folder(t, "a.json", plain(t, "A"))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	src := source(t, s, SourceOptions{})
	_, _, err = src.Next(context.Background())
	var bad *BadRecord
	if err == nil || errors.As(err, &bad) || !strings.Contains(err.Error(), "no space left") || src.Skipped() != 0 {
		t.Errorf("Next = %v, skipped %d", err, src.Skipped())
	}
}

func TestReferencesThatAreNoImage(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "note.txt", strings.Repeat("not an image ", 20))
	write(t, dir, "empty.png", "")
	write(t, dir, "sub/x", "")
	for ref, want := range map[string]string{
		"":                         "empty reference",
		"data:image/png,abc":       "without ;base64,",
		"note.txt":                 "no JPEG",
		"empty.png":                "0 bytes",
		"sub":                      "not a regular file",
		"gone/deep/picture.jpeg":   "no file, key or base64",
		"abc":                      "no file, key or base64",
		strings.Repeat("%", 80):    "base64 of 80 characters",
		strings.Repeat("AAAA", 60): "no JPEG",
	} {
		r := imageResolver{root: dir, limits: Limits{}.withDefaults()}
		data, err := r.bytes(ref)
		if err == nil {
			_, err = inspect(data, r.limits)
		}
		if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want ErrImage with %q", shorten(ref), err, want)
		}
	}
	big := imageResolver{root: dir, limits: Limits{Bytes: 5, Pixels: 1}}
	if _, err := big.bytes("note.txt"); !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), "at most 5") {
		t.Errorf("a file above the limit: %v", err)
	}
}

func TestOneImageIsStoredOnce(t *testing.T) {
	images := store(t)
	path := folder(t, "a.json", plain(t, "A"), plain(t, "B"), plain(t, "C"))
	s, err := Open(context.Background(), images, Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	digests := map[string]bool{}
	for i := range s.Len() {
		for _, image := range question(t, s, i).Images() {
			digests[image.Digest] = true
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if len(digests) != 1 {
		t.Errorf("%d images for one file", len(digests))
	}
	for d := range digests {
		if data, err := images.Get(context.Background(), d); err != nil || string(data) != string(pngOf(t, 1)) {
			t.Errorf("the store returns %d bytes, %v", len(data), err)
		}
	}
}

// Opening n records that share an image costs time and allocations linear in
// n, and reading one afterwards does not depend on n.
func TestOpeningIsLinear(t *testing.T) {
	build := func(n int) *Set {
		dir := t.TempDir()
		write(t, dir, "pic.png", string(pngOf(t, 1)))
		return open(t, Options{Path: write(t, dir, "a.jsonl", strings.Repeat(plain(t, "B")+"\n", n)), NoIndexFile: true})
	}
	small, large := build(200), build(800)
	cost := func(s *Set) float64 {
		return testing.AllocsPerRun(20, func() { question(t, s, s.Len()-1) })
	}
	if a, b := cost(small), cost(large); b > 1.2*a {
		t.Errorf("reading a record allocates %.0f times of 200 records and %.0f times of 800", a, b)
	}
	if filepath.Base(large.options.Path) != "a.jsonl" || large.Len() != 800 {
		t.Errorf("%d records", large.Len())
	}
}
