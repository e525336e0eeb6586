package dataset

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Editors of one well-known system put a byte order mark before every format.
func TestByteOrderMarkBeforeEveryFormat(t *testing.T) {
	dir := t.TempDir()
	cell := b64(pngOf(t, 1))
	record := fmt.Sprintf(`{"image":%q,"conversations":%s}`, cell, jsonOf(t, qa("What? A. x B. y", "B")))
	for name, text := range map[string]string{
		"a.json":     "[" + record + "]",
		"lines.json": record + "\n" + record + "\n",
		"a.jsonl":    record + "\r\n" + record,
		"a.csv":      "image,question,answer\r\n" + cell + ",What? A. x B. y,B\r\n",
		"quoted.csv": "\"image\",\"question\",\"answer\"\r\n\"" + cell + "\",\"What? A. x B. y\",\"B\"\r\n",
		"a.tsv":      "image\tquestion\tanswer\n" + cell + "\tWhat? A. x B. y\tB\n",
	} {
		plain := question(t, open(t, Options{Path: write(t, dir, "plain-"+name, text), Name: "n"}), 0)
		marked := question(t, open(t, Options{Path: write(t, dir, name, "\ufeff"+text), Name: "n", MaxBadShare: -1}), 0)
		if jsonOf(t, plain) != jsonOf(t, marked) {
			t.Errorf("%s: with the mark %s\nwithout %s", name, jsonOf(t, marked), jsonOf(t, plain))
		}
	}
}

// Several processes of one machine open the same file at the same time; each
// writes the index, and none may see half of another's.
func TestConcurrentOpensShareAnIndex(t *testing.T) {
	for round := range 8 {
		path := folder(t, "a.json", plain(t, "A"), plain(t, "B"), plain(t, "C"), `{"image":"gone.png"}`)
		images := store(t)
		var wait sync.WaitGroup
		for i := range 8 {
			wait.Go(func() {
				// Different options, so that headers of different length are written.
				s, err := Open(context.Background(), images, Options{Path: path, MaxImages: 1 + i, MaxBadShare: 0.5})
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				if err := s.Close(); s.Len() != 3 || err != nil {
					t.Errorf("round %d: %d records, %v", round, s.Len(), err)
				}
			})
		}
		wait.Wait()
		if left, err := filepath.Glob(path + "*part*"); err != nil || len(left) != 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

// An index that cannot be kept costs time, not the run.
func TestAnIndexThatCannotBeKept(t *testing.T) {
	for _, err := range []error{syscall.EROFS, syscall.EACCES, syscall.EPERM, syscall.ENOSPC, syscall.EDQUOT} {
		if !onlyCostsTime(&fs.PathError{Op: "open", Path: "x", Err: err}) {
			t.Errorf("%v fails the open", err)
		}
	}
	if onlyCostsTime(syscall.EIO) {
		t.Error("a failing disk is passed over")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	path := folder(t, "a.json", plain(t, "A"))
	_, err := Open(context.Background(), store(t), Options{Path: path, MaxImages: -1, MaxBadShare: math.NaN(),
		Limits: Limits{Pixels: -1, Bytes: -1}, Kind: "essay"})
	for _, word := range []string{"MaxImages", "MaxBadShare", "Pixels", "Bytes", "essay"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not name %s", err, word)
		}
	}
	if _, err := os.Stat(path + ".index"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("refused options left an index: %v", err)
	}
}

// A draw that fails for want of time may be made again: the cursor stands
// where it stood, so that a checkpoint after a Ctrl-C loses no question.
func TestAFailedDrawDoesNotMoveTheCursor(t *testing.T) {
	path := folder(t, "a.json", plain(t, "A"), plain(t, "B"), plain(t, "C"))
	rapid.Check(t, func(r *rapid.T) {
		s := open(t, Options{Path: path})
		sure, shaky := source(t, s, SourceOptions{Seed: 4}), source(t, s, SourceOptions{Seed: 4})
		cancelled, cancel := context.WithCancel(context.Background())
		cancel()
		for range rapid.IntRange(1, 8).Draw(r, "draws") {
			for range rapid.IntRange(0, 2).Draw(r, "failures") {
				if _, _, err := shaky.Next(cancelled); !errors.Is(err, context.Canceled) {
					r.Fatalf("%v", err)
				}
			}
			want, epoch, err := sure.Next(context.Background())
			got, again, err2 := shaky.Next(context.Background())
			if err != nil || err2 != nil || got.ID != want.ID || epoch != again {
				r.Fatalf("%s of epoch %d, %v, want %s of %d, %v", got.ID, again, err2, want.ID, epoch, err)
			}
			a, _ := sure.State()
			b, _ := shaky.State()
			if !bytes.Equal(a, b) {
				r.Fatalf("state %s, want %s", b, a)
			}
		}
	})
}

// A position in a shuffled epoch is no position in file order.
func TestRestoreRefusesTheOtherOrder(t *testing.T) {
	list := numbered{n: 9}
	state, err := source(t, list, SourceOptions{Seed: 1}).State()
	if err != nil {
		t.Fatal(err)
	}
	if err := source(t, list, SourceOptions{Seed: 1, InOrder: true}).Restore(state); !errors.Is(err, ErrFields) {
		t.Errorf("restored: %v", err)
	}
}

// A file that is changed right after it was indexed, within the resolution of
// its time and to the same size, is read as it is now.
func TestIndexOfAFileChangedAtOnce(t *testing.T) {
	for round := range 20 {
		path := folder(t, "a.json", plain(t, "A"))
		first := open(t, Options{Path: path}).Digest()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Dir(path), "a.json", "["+plain(t, "B")+"]")
		// The worst case of a coarse clock: the very same time.
		if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
			t.Fatal(err)
		}
		s := open(t, Options{Path: path})
		if q := question(t, s, 0); q.Gold != "B" || s.Digest() == first {
			t.Fatalf("round %d: gold %s with digest %.8s, before %.8s", round, q.Gold, s.Digest(), first)
		}
	}
}

// A file cut anywhere is an error that names it, or fewer records; never other
// records.
func TestTruncatedAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pic.png", string(pngOf(t, 1)))
	records := []string{plain(t, "A"), plain(t, "B"), plain(t, "C")}
	for name, whole := range map[string]string{
		"a.json":  "[" + strings.Join(records, ",\r\n") + "]",
		"a.jsonl": strings.Join(records, "\r\n") + "\r\n",
		"a.csv":   "image,question,answer\r\npic.png,\"What? A. x B. y\nC. z\",A\r\npic.png,\"What? A. x B. y\nC. z\",B\r\n",
	} {
		full := open(t, Options{Path: write(t, dir, name, whole), NoIndexFile: true})
		var want []string
		for i := range full.Len() {
			want = append(want, question(t, full, i).Text)
		}
		images := store(t)
		for cut := range len(whole) {
			path := write(t, dir, name, whole[:cut])
			s, err := Open(context.Background(), images, Options{Path: path, NoIndexFile: true, MaxBadShare: 1})
			if err != nil {
				if !strings.Contains(err.Error(), name) {
					t.Fatalf("%s cut at %d: %v does not name the file", name, cut, err)
				}
				continue
			}
			if name == "a.json" {
				t.Errorf("%s cut at %d opens", name, cut)
			}
			for i := range s.Len() {
				if q, err := s.Question(context.Background(), i); err != nil || name == "a.jsonl" && q.Text != want[i] {
					t.Fatalf("%s cut at %d, record %d: %q, %v", name, cut, i, q.Text, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A reference may name any file, but what is no image is refused without a
// word of its content.
func TestAReferenceLeaksNoFile(t *testing.T) {
	secret := write(t, t.TempDir(), "key.pem", "TOPSECRET-"+strings.Repeat("x", 200))
	path := folder(t, "a.json", plain(t, "A"))
	up, err := filepath.Rel(filepath.Dir(path), secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{secret, up, "./" + up, filepath.Dir(secret), "/dev/zero"} {
		records := strings.ReplaceAll(plain(t, "A"), `"pic.png"`, jsonOf(t, ref))
		_, err := Open(context.Background(), store(t), Options{NoIndexFile: true,
			Path: write(t, filepath.Dir(path), "b.json", "["+records+"]")})
		var bad *TooManyBadError
		if !errors.As(err, &bad) || strings.Contains(err.Error(), "TOPSECRET") {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// An image that claims more pixels than it may is refused before a pixel of it
// is decoded, whatever its format.
func TestBombsAreRefusedByTheirHeader(t *testing.T) {
	png := pngOf(t, 1)
	// Width and height of a PNG stand at byte 16; the check sum is that of IHDR.
	huge := bytes.Clone(png)
	copy(huge[16:24], []byte{0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff})
	bmp := append([]byte("BM"), make([]byte, 60)...)
	copy(bmp[10:], []byte{54, 0, 0, 0, 40, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f, 1, 0, 24})
	gif := []byte("GIF89a\xff\xff\xff\xff\x00\x00\x00;")
	for name, data := range map[string][]byte{"png": huge, "bmp": bmp, "gif": gif} {
		allocated := testing.AllocsPerRun(1, func() {
			if _, err := inspect(data, Limits{}.withDefaults()); !errors.Is(err, ErrImage) {
				t.Errorf("%s: %v", name, err)
			}
		})
		if allocated > 200 {
			t.Errorf("%s: %v allocations to refuse it", name, allocated)
		}
	}
}

// base64 with line breaks, without padding or with too much reads alike; what
// is damaged is refused, not shortened.
func TestBase64Forms(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(r, "data")
		text := base64.StdEncoding.EncodeToString(data)
		at := rapid.IntRange(0, len(text)).Draw(r, "at")
		for _, form := range []string{text, strings.TrimRight(text, "="), text[:at] + "\r\n " + text[at:], text + "\n"} {
			if got, err := decodeBase64(form); err != nil || !bytes.Equal(got, data) {
				r.Fatalf("%q: %x, %v", form, got, err)
			}
		}
		if got, err := decodeBase64(text[:at] + "!" + text[at:]); err == nil {
			r.Fatalf("damaged: %x", got)
		}
	})
}
