package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/uadt-train/uadt-train/internal/serve"
)

// evalArgs evaluates the shared trained policy into out.
func evalArgs(t *testing.T, l *laboratory, out string, more ...string) []string {
	t.Helper()
	trained := filepath.Join(lastCheckpoint(t, l.unbroken(t)), "policy")
	return append([]string{
		"eval", "--model", trained, "--data", l.path("data", "in_domain.json"), "--protocol", "micro", "--max-tokens", "32", "--out", out,
	}, more...)
}

func readPredictionLines(t *testing.T, out string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(out, "predictions.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func TestEvalResumesWithoutAskingAgain(t *testing.T) {
	l := lab(t)
	out := filepath.Join(t.TempDir(), "eval")
	whole := invoke(t, evalArgs(t, l, out)...)
	whole.expect(t, exitDone)
	lines := readPredictionLines(t, out)
	if len(lines) != 8 {
		t.Fatalf("%d predictions of 8 records", len(lines))
	}
	before, err := os.ReadFile(filepath.Join(out, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	// As a crash leaves it: three records done, the fourth cut off in the middle.
	marked := strings.Replace(lines[0], `"text":"`, `"text":"kept `, 1)
	cut := strings.Join([]string{marked, lines[1], lines[2], lines[3][:len(lines[3])/2]}, "\n")
	writeFile(t, filepath.Join(out, "predictions.jsonl"), []byte(cut))
	resumed := invoke(t, evalArgs(t, l, out)...)
	resumed.expect(t, exitDone, "3 of 8 records are answered already")
	after := readPredictionLines(t, out)
	if len(after) != 8 || after[0] != marked {
		t.Errorf("%d predictions after the resume; the first was asked again: %v", len(after), after[0] != marked)
	}
	if got, err := os.ReadFile(filepath.Join(out, "summary.json")); err != nil || countOf(t, got) != countOf(t, before) {
		t.Errorf("the resumed summary is of other records (%v)", err)
	}
	page, err := os.ReadFile(filepath.Join(out, "report.html"))
	if err != nil || !bytes.Contains(page, []byte("Not for clinical use")) || bytes.Contains(page, []byte("://")) {
		t.Errorf("the page is missing, unlabelled or reaches for the network (%v)", err)
	}
}

// countOf reads the number of records of a summary.
func countOf(t *testing.T, data []byte) int {
	t.Helper()
	var s struct {
		Summary struct {
			Records int `json:"records"`
		} `json:"summary"`
	}
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return s.Summary.Records
}

func TestEvalRefusesADirectoryOfOtherSettings(t *testing.T) {
	l := lab(t)
	out := filepath.Join(t.TempDir(), "eval")
	invoke(t, evalArgs(t, l, out, "--limit", "2")...).expect(t, exitDone)
	before := readPredictionLines(t, out)
	invoke(t, evalArgs(t, l, out, "--limit", "3")...).expect(t, exitUsage, "other settings")
	if after := readPredictionLines(t, out); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Error("a refused evaluation changed the predictions")
	}
}

func TestEvalSamplesForPassAtK(t *testing.T) {
	l := lab(t)
	out := filepath.Join(t.TempDir(), "eval")
	r := invoke(t, evalArgs(t, l, out, "--samples", "3", "--temperature", "1", "--train", l.path("data", "train.json"), "--json")...)
	r.expect(t, exitDone)
	var s struct {
		Summary struct {
			Overall struct {
				Responses int              `json:"responses"`
				Passes    []map[string]any `json:"pass_at_k"`
			} `json:"overall"`
		} `json:"summary"`
		Overlap overlap `json:"overlap_with_training"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	if s.Summary.Overall.Responses != 24 || len(s.Summary.Overall.Passes) == 0 {
		t.Errorf("summary = %+v", s.Summary)
	}
	if s.Overlap.Images != 8 || s.Overlap.Exact != 0 {
		t.Errorf("overlap = %+v, want 8 images and none of the training set", s.Overlap)
	}
}

func TestEvalFindsTrainingImages(t *testing.T) {
	l := lab(t)
	out := filepath.Join(t.TempDir(), "eval")
	r := invoke(t, evalArgs(t, l, out, "--train", l.path("data", "in_domain.json"))...)
	r.expect(t, exitDone)
	if !strings.Contains(r.stdout, "of 8 images, 8 are training images") {
		t.Errorf("the overlap with itself is not said:\n%s", r.stdout)
	}
}

func TestEvalWithoutImages(t *testing.T) {
	l := lab(t)
	with, without := filepath.Join(t.TempDir(), "with"), filepath.Join(t.TempDir(), "without")
	invoke(t, evalArgs(t, l, with)...).expect(t, exitDone)
	invoke(t, evalArgs(t, l, without, "--without-images")...).expect(t, exitDone)
	texts := map[string]bool{}
	for _, line := range readPredictionLines(t, without) {
		var p prediction
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatal(err)
		}
		texts[p.Text] = true
	}
	// All questions are the same but for their images, and answers are greedy.
	if len(texts) > len(readPredictionLines(t, with))/2 {
		t.Errorf("%d different answers to one question without images", len(texts))
	}
}

func TestEvalSaysWhatIsWrongWithItsFlags(t *testing.T) {
	r := invoke(t, "eval", "--protocol", "mine", "--samples", "0")
	r.expect(t, exitUsage, "--protocol mine", "--model or --servers", "--data", "--samples 0")
	invoke(t, "eval", "--model", "m", "--data", "d", "--samples", "2").expect(t, exitUsage, "greedy answers are all the same")
}

// An evaluation that is refused before it asks anything leaves nothing behind,
// and nothing of others is taken away.
func TestARefusedEvalLeavesNothing(t *testing.T) {
	l := lab(t)
	data, model := l.path("data", "in_domain.json"), l.path("model")
	broken := writeFile(t, filepath.Join(t.TempDir(), "broken.json"), []byte("[{}, {}]"))
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"no such data", []string{"--model", model, "--data", "/gone.json"}, exitFailed},
		{"bad data", []string{"--model", model, "--data", broken}, exitFailed},
		{"no such model", []string{"--model", "/gone", "--data", data}, exitFailed},
		{"no such training data", []string{"--model", model, "--data", data, "--train", "/gone.json"}, exitFailed},
		{"one file twice", []string{"--model", model, "--data", data, "--data", data}, exitFailed},
		{"no server", []string{"--servers", "http://" + closedPort(t), "--data", data}, exitUnreachable},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			args := append([]string{"eval", "--out"}, filepath.Join(root, "some", "where"))
			invoke(t, append(args, c.args...)...).expect(t, c.code)
			requireAbsent(t, filepath.Join(root, "some"))
			// A folder that was there stays, with what is in it.
			writeFile(t, filepath.Join(root, "some", "mine.txt"), []byte("mine"))
			before := tree(t, filepath.Join(root, "some", "mine.txt"))
			invoke(t, append(args, c.args...)...).expect(t, c.code)
			requireUntouched(t, filepath.Join(root, "some", "mine.txt"), before)
			requireAbsent(t, filepath.Join(root, "some", "where"))
		})
	}
}

// A folder of an evaluation keeps what it has when another one is refused.
func TestARefusedEvalKeepsAnEarlierOne(t *testing.T) {
	l := lab(t)
	out := filepath.Join(t.TempDir(), "eval")
	invoke(t, evalArgs(t, l, out, "--limit", "2")...).expect(t, exitDone)
	before := tree(t, out)
	invoke(t, "eval", "--model", "/gone", "--data", l.path("data", "in_domain.json"), "--limit", "2", "--out", out).expect(t, exitFailed)
	requireUntouched(t, out, before)
}

// TestPhotographsAreNotEmbedded: the page carries images of sets that are marked
// as phantoms, and of no other.
func TestPhotographsAreNotEmbedded(t *testing.T) {
	l := lab(t)
	other := t.TempDir()
	if err := os.CopyFS(filepath.Join(other, "images"), os.DirFS(l.path("data", "images"))); err != nil {
		t.Fatal(err)
	}
	records, err := os.ReadFile(l.path("data", "in_domain.json"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(other, "in_domain.json"), records)
	// Other pictures in a folder that phantoms were once written to.
	mixed := t.TempDir()
	if err := os.CopyFS(mixed, os.DirFS(l.path("data"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(mixed, "images"), filepath.Join(mixed, "photos")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(mixed, "in_domain.json"), bytes.ReplaceAll(records, []byte("images/"), []byte("photos/")))
	for data, shown := range map[string]bool{l.path("data", "in_domain.json"): true, filepath.Join(other, "in_domain.json"): false, filepath.Join(mixed, "in_domain.json"): false} {
		out := filepath.Join(t.TempDir(), "eval")
		args := evalArgs(t, l, out)
		for i, a := range args {
			if a == "--data" {
				args[i+1] = data
			}
		}
		invoke(t, args...).expect(t, exitDone)
		page, err := os.ReadFile(filepath.Join(out, "report.html"))
		if err != nil {
			t.Fatal(err)
		}
		if embedded := bytes.Contains(page, []byte("data:image/")); embedded != shown {
			t.Errorf("%s: images embedded %v, want %v", data, embedded, shown)
		}
		if said := bytes.Contains(page, []byte("which are not known to be phantoms, are not shown")); said == shown {
			t.Errorf("%s: the page says that images are withheld: %v", data, said)
		}
	}
}

// startingServer serves the shared model once it has been asked for its health
// some times, and says by 503 until then that it still starts.
func startingServer(t *testing.T, l *laboratory, refusals int64) (url string, asked *atomic.Int64) {
	t.Helper()
	server, err := serve.New(serve.Options{Dir: l.path("model")})
	if err != nil {
		t.Fatal(err)
	}
	asked = &atomic.Int64{}
	handler := server.Handler()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			asked.Add(1)
		}
		if asked.Load() <= refusals {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		front.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return front.URL, asked
}

// Servers must answer at once, each is asked once, and every one that does not is
// named; those that start are waited for where that is asked for, and only there.
func TestEvalWaitsForServersOnlyWhenAsked(t *testing.T) {
	l := lab(t)
	args := func(servers string, more ...string) []string {
		return append([]string{"eval", "--servers", servers, "--data", l.path("data", "in_domain.json"), "--protocol", "micro",
			"--max-tokens", "4", "--limit", "1", "--out", filepath.Join(t.TempDir(), "eval")}, more...)
	}
	url, asked := startingServer(t, l, 3)
	dead := "http://" + closedPort(t)
	invoke(t, args(url+","+dead)...).expect(t, exitUnreachable, "server "+url+": /health has status 503", "server "+dead+":", "refused")
	if n := asked.Load(); n != 1 {
		t.Errorf("a server that is not waited for was asked %d times", n)
	}
	invoke(t, args(url, "--wait", "1m")...).expect(t, exitDone)
	if n := asked.Load(); n <= 3 {
		t.Errorf("the server was asked %d times and cannot have been ready", n)
	}
	invoke(t, args(url)...).expect(t, exitDone)
	invoke(t, args(dead, "--wait", "1ms")...).expect(t, exitUnreachable, dead)
	invoke(t, args(url, "--wait", "-1s")...).expect(t, exitUsage, "--wait -1s")
	invoke(t, "eval", "--model", "m", "--data", "d", "--wait", "1s").expect(t, exitUsage, "--wait 1s", "--servers")
}
