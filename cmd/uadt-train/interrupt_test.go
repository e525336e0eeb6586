package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/bus"
)

// invokeUntil runs a command line and sends it n interrupts when it writes a line
// to stderr that holds words.
func invokeUntil(t *testing.T, n int, words string, args ...string) result {
	t.Helper()
	signals := make(chan os.Signal, n)
	var sent atomic.Bool
	w := &watcher{}
	w.seen = func(line string) {
		if strings.Contains(line, words) && sent.CompareAndSwap(false, true) {
			for range n {
				signals <- syscall.SIGTERM
			}
		}
	}
	r := invokeWith(t, &Main{Stderr: w, Signals: signals}, args...)
	r.stderr = w.text()
	if !sent.Load() {
		t.Fatalf("no line with %q came; exit code %d:\n%s", words, r.code, r.stderr)
	}
	return r
}

// A server that is asked to stop has done its work: code 0, and its port is free.
func TestServeStopsWhenAsked(t *testing.T) {
	l := lab(t)
	r := invokeUntil(t, 1, "serving ", "serve", "--model", l.path("model"), "--addr", "127.0.0.1:0", "--name", "p")
	r.expect(t, exitDone)
	url := regexp.MustCompile(`http://\S+`).FindString(r.stderr)
	if !strings.Contains(r.stderr, " as p at "+url) || url == "" {
		t.Errorf("the address is not said:\n%s", r.stderr)
	}
	if answer, err := http.Get(url + "/health"); err == nil {
		answer.Body.Close() //nolint:errcheck // nobody should have answered
		t.Errorf("%s still answers with status %d", url, answer.StatusCode)
	}
}

// An evaluation that is cut off keeps what was answered, and the next one asks
// the rest only; together they say what one that was not cut off says.
func TestEvalThatIsInterruptedGoesOn(t *testing.T) {
	l := lab(t)
	args := func(out string) []string {
		return []string{"eval", "--model", l.path("model"), "--data", l.path("data", "train.json"), "--protocol", "micro", "--max-tokens", "24", "--out", out}
	}
	cut, whole := filepath.Join(t.TempDir(), "cut"), filepath.Join(t.TempDir(), "whole")
	invokeUntil(t, 2, "2/16 answered", args(cut)...).expect(t, exitInterrupted, "interrupted twice")
	kept := len(readPredictionLines(t, cut))
	if kept < 2 || kept > 16 {
		t.Fatalf("%d records are kept, of 2 or more that were answered", kept)
	}
	invoke(t, args(cut)...).expect(t, exitDone, fmt.Sprintf("%d of 16 records are answered already", kept))
	invoke(t, args(whole)...).expect(t, exitDone)
	texts := func(out string) map[string]bool {
		set := map[string]bool{}
		for _, line := range readPredictionLines(t, out) {
			set[regexp.MustCompile(`"seconds":[^,}]*`).ReplaceAllString(line, "")] = true
		}
		return set
	}
	a, b := texts(cut), texts(whole)
	if len(a) != 16 || len(b) != 16 {
		t.Fatalf("%d and %d different answers, want 16", len(a), len(b))
	}
	for line := range b {
		if !a[line] {
			t.Errorf("not in the evaluation that went on: %s", line)
		}
	}
}

// A worker that no run waits for says which run is not there.
func TestWorkerOfARunThatIsNotThere(t *testing.T) {
	t.Parallel()
	server, err := bus.Start(bus.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	invoke(t, "worker", "--bus", server.URL(), "--run", "nowhere", "--servers", "http://127.0.0.1:1").
		expect(t, exitUnreachable, "run nowhere", "image store")
	seed := writeFile(t, filepath.Join(t.TempDir(), "seed"), []byte("not a seed\n"))
	recipe := writeFile(t, filepath.Join(t.TempDir(), "r.yaml"), []byte("name: x\nmodel: {path: m}\nstages: [{name: a, kind: rl, data: d, steps: 1, learning_rate: 1e-4}]\n"))
	for credentials, words := range map[string]string{seed: "seed", "/gone.seed": "/gone.seed"} {
		r := invoke(t, "worker", "--config", recipe, "--bus", server.URL(), "--servers", "http://127.0.0.1:1", "--set", "bus.credentials="+credentials)
		if r.code == exitDone || !strings.Contains(r.stderr, words) {
			t.Errorf("credentials %s: exit code %d: %s", credentials, r.code, r.stderr)
		}
	}
}

// Servers that break off, in the ways in which servers do: the command ends with
// an error that names the server, and never takes a piece for an answer.
func TestInferFromAServerThatBreaksOff(t *testing.T) {
	piece := `data: {"id":"x","choices":[{"index":0,"delta":{"content":"<think>half"}}]}` + "\n\n"
	for name, answer := range map[string]func(http.ResponseWriter){
		"before the answer": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"within the answer": func(w http.ResponseWriter) {
			fmt.Fprint(w, piece)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"without its end": func(w http.ResponseWriter) { fmt.Fprint(w, piece) },
		"with nonsense":   func(w http.ResponseWriter) { fmt.Fprint(w, piece, "data: {\"choices\": 7}\n\ndata: [DONE]\n\n") },
		"with an error":   func(w http.ResponseWriter) { http.Error(w, `{"error":{"message":"out of memory"}}`, 500) },
		"with no answer":  func(w http.ResponseWriter) { fmt.Fprint(w, "data: [DONE]\n\n") },
		"with a late error": func(w http.ResponseWriter) {
			fmt.Fprint(w, piece, "data: {\"error\":{\"message\":\"engine died\",\"code\":500}}\n\ndata: [DONE]\n\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				answer(w)
			}))
			defer server.Close()
			r := invoke(t, "infer", "--servers", server.URL, "--question", "q")
			if r.code == exitDone || !strings.Contains(r.stderr, server.URL) {
				t.Errorf("exit code %d, want a failure that names %s:\n%s%s", r.code, server.URL, r.stderr, r.stdout)
			}
		})
	}
}

// However a server cuts its answer into pieces, the same is printed, and only
// tags are taken out of the text.
func TestAnswersArePrintedTheSameInAnyPieces(t *testing.T) {
	words := rapid.SampledFrom([]string{"<think>", "</think>", "<answer>", "</answer>", "<", "<th", "</", "a", " ", "\n", "é", "1 < 2", "<b>", ">"})
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(words, 0, 12).Draw(t, "words"), "")
		print := func(pieces ...string) string {
			var out strings.Builder
			p := &answerPrinter{out: &printer{w: &out}}
			for _, piece := range pieces {
				p.text(piece)
			}
			p.end()
			return out.String()
		}
		var pieces []string
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		whole := print(text)
		if got := print(pieces...); got != whole {
			t.Fatalf("%q in one piece prints %q, in %q %q", text, whole, pieces, got)
		}
		want := strings.NewReplacer("<think>", "reasoning: ", "</think>", "\n", "<answer>", "answer: ", "</answer>", "\n").Replace(text)
		if strings.TrimRight(whole, "\n") != strings.TrimRight(want, "\n") || !strings.HasSuffix(whole, "\n") {
			t.Fatalf("%q prints %q, want %q and the end of a line", text, whole, want)
		}
	})
}

// The two contexts of a command end in their order, at one signal each; more of
// them change nothing, and what watched them is gone afterwards.
func TestSignalsEndTheContextsInOrder(t *testing.T) {
	signals := make(chan os.Signal)
	w := watchSignals(t.Context(), signals)
	signals <- os.Interrupt
	<-w.admit.Done()
	if w.work.Err() != nil {
		t.Fatal("the first signal ended the work")
	}
	for range 3 {
		signals <- syscall.SIGTERM
	}
	<-w.work.Done()
	if n := w.interrupted.Load(); n < 2 {
		t.Errorf("%d signals were counted", n)
	}
	w.stop()
	select {
	case signals <- os.Interrupt:
		t.Error("somebody still listens")
	case <-time.After(time.Millisecond): // nothing can come: the listener has ended
	}
}
