package dataset

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

// numbered is a list of questions in memory; bad ones fail.
type numbered struct {
	n   int
	bad map[int]bool
}

func (l numbered) Len() int       { return l.n }
func (l numbered) Digest() string { return fmt.Sprintf("digest of %d", l.n) }
func (l numbered) Question(_ context.Context, i int) (rollout.Question, error) {
	if l.bad[i] {
		return rollout.Question{}, &BadRecord{File: "f", Record: i, Err: ErrImage}
	}
	return rollout.Question{ID: fmt.Sprint(i)}, nil
}

func source(t interface {
	Helper()
	Fatal(...any)
}, l Questions, o SourceOptions) *Source {
	t.Helper()
	s, err := NewSource(l, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryEpochHoldsEachQuestionOnce(t *testing.T) {
	s := source(t, numbered{n: 50}, SourceOptions{Seed: 4, Stage: "rl"})
	var orders [3]string
	for epoch := range orders {
		seen := map[string]bool{}
		for range 50 {
			q, e, err := s.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if e != epoch || seen[q.ID] {
				t.Fatalf("question %s in epoch %d, seen before: %v", q.ID, e, seen[q.ID])
			}
			seen[q.ID] = true
			orders[epoch] += q.ID + " "
		}
	}
	if orders[0] == orders[1] || orders[1] == orders[2] {
		t.Error("two epochs have the same order")
	}
	other := source(t, numbered{n: 50}, SourceOptions{Seed: 4, Stage: "sft"})
	if q, _, _ := other.Next(context.Background()); strings.HasPrefix(orders[0], q.ID+" ") {
		second, _, _ := other.Next(context.Background())
		if strings.HasPrefix(orders[0], q.ID+" "+second.ID+" ") {
			t.Error("two stages draw the same order")
		}
	}
}

// Restoring any state gives the same questions as going on.
func TestRestoreIsGoingOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(t, "n")
		list := numbered{n: n, bad: map[int]bool{}}
		if n > 2 {
			list.bad[rapid.IntRange(0, n-1).Draw(t, "bad")] = true
		}
		o := SourceOptions{Seed: rapid.Int64().Draw(t, "seed"), Stage: "x", InOrder: rapid.Bool().Draw(t, "in order")}
		a := source(t, list, o)
		draw := func(s *Source) string {
			q, e, err := s.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(q.ID, "@", e)
		}
		for range rapid.IntRange(0, 25).Draw(t, "drawn") {
			draw(a)
		}
		state, err := a.State()
		if err != nil {
			t.Fatal(err)
		}
		b := source(t, list, o)
		if err := b.Restore(state); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if x, y := draw(a), draw(b); x != y {
				t.Fatalf("restored source gives %s, want %s", y, x)
			}
		}
		if a.Skipped() != b.Skipped() {
			t.Fatalf("skipped %d and %d", a.Skipped(), b.Skipped())
		}
	})
}

func TestRestoreRefusesAnotherList(t *testing.T) {
	a := source(t, numbered{n: 5}, SourceOptions{Seed: 1})
	state, err := a.State()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*Source{
		"length": source(t, numbered{n: 6}, SourceOptions{Seed: 1}),
		"seed":   source(t, numbered{n: 5}, SourceOptions{Seed: 2}),
		"stage":  source(t, numbered{n: 5}, SourceOptions{Seed: 1, Stage: "y"}),
	} {
		if err := s.Restore(state); !errors.Is(err, ErrFields) {
			t.Errorf("other %s: %v, want ErrFields", name, err)
		}
	}
	for _, bad := range []string{"", "{", strings.Replace(string(state), `"next":0`, `"next":9`, 1)} {
		if err := a.Restore([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("Restore(%q) = %v, want ErrFormat", bad, err)
		}
	}
	if _, err := NewSource(numbered{}, SourceOptions{}); err == nil {
		t.Error("a source over nothing was made")
	}
}

func TestSourceSkipsWhatWentBadAndGivesUpWhenAllDid(t *testing.T) {
	s := source(t, numbered{n: 3, bad: map[int]bool{1: true}}, SourceOptions{InOrder: true})
	for _, want := range []string{"0", "2", "0"} {
		if q, _, err := s.Next(context.Background()); err != nil || q.ID != want {
			t.Fatalf("Next = %s, %v, want %s", q.ID, err, want)
		}
	}
	if s.Skipped() != 1 {
		t.Errorf("Skipped = %d, want 1", s.Skipped())
	}
	all := source(t, numbered{n: 2, bad: map[int]bool{0: true, 1: true}}, SourceOptions{})
	if _, _, err := all.Next(context.Background()); !errors.Is(err, ErrImage) {
		t.Errorf("Next = %v, want the cause", err)
	}
}

func TestIndexFileIsUsedAndRenewed(t *testing.T) {
	dir := t.TempDir()
	record := func(n int) string {
		return fmt.Sprintf(`{"image":%q,"conversations":%s}`, b64(pngOf(t, uint8(n))), jsonOf(t, qa("x", fmt.Sprint("answer ", n))))
	}
	path := write(t, dir, "a.json", "["+record(1)+"]")
	first := open(t, Options{Path: path})
	info, err := os.Stat(path + ".index")
	if err != nil {
		t.Fatal(err)
	}
	if again := open(t, Options{Path: path}); again.Digest() != first.Digest() || again.Len() != 1 {
		t.Errorf("second open: digest %s, %d records", again.Digest(), again.Len())
	}
	if after, err := os.Stat(path + ".index"); err != nil || !after.ModTime().Equal(info.ModTime()) {
		t.Errorf("the index was written again: %v, %v", after, err)
	}
	write(t, dir, "a.json", "["+record(1)+","+record(2)+"]")
	renewed := open(t, Options{Path: path})
	if renewed.Len() != 2 || renewed.Digest() == first.Digest() {
		t.Errorf("a changed file: %d records, same digest %v", renewed.Len(), renewed.Digest() == first.Digest())
	}
	write(t, dir, "a.json.index", "uadt-train index 1\nrubbish")
	if s := open(t, Options{Path: path}); s.Len() != 2 || question(t, s, 1).Gold != "answer 2" {
		t.Error("a broken index was not made again")
	}
}

func TestReadOnDemandSeesAChangedRecord(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pic.png", string(pngOf(t, 1)))
	path := write(t, dir, "a.json", `[{"image":"pic.png","conversations":`+jsonOf(t, qa("x", "y"))+`}]`)
	s := open(t, Options{Path: path})
	if err := os.Remove(dir + "/pic.png"); err != nil {
		t.Fatal(err)
	}
	var bad *BadRecord
	if _, err := s.Question(context.Background(), 0); !errors.As(err, &bad) || bad.Record != 0 {
		t.Errorf("Question = %v, want a BadRecord", err)
	}
	if _, err := s.Question(context.Background(), 1); err == nil {
		t.Error("question 1 of 1 exists")
	}
}
