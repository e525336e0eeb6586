package telemetry

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// values are metrics with what arithmetic may leave in them.
var values = rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, math.Copysign(0, -1), math.NaN(), math.Inf(1), math.Inf(-1), 1e-300, math.MaxFloat64}))

var someMetrics = rapid.MapOfN(rapid.SampledFrom([]string{"uadt/tau", "reward/mean", "accuracy/eval", "loss/total", "seconds/step"}), values, 0, 4)

// drawEvents draws what a run may emit; steps rise, as those of a run do.
func drawEvents(t *rapid.T) []Event {
	var events []Event
	for n := range rapid.IntRange(0, 12).Draw(t, "events") {
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			events = append(events, Evaluated{Stage: "rl", Global: n, Metrics: Metrics(someMetrics.Draw(t, "metrics"))})
		case 1:
			events = append(events, GroupDropped{Job: "j", Reason: rapid.SampledFrom([]string{"deadline", "a \"b\"\n\\", "\xff"}).Draw(t, "reason")})
		case 2:
			events = append(events, Alarm{Name: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "alarm"), Step: n, Message: "m\nn"})
		default:
			events = append(events, StepDone{Stage: rapid.SampledFrom([]string{"rl", "sft"}).Draw(t, "stage"), Step: n + 1, Global: n + 1, Metrics: Metrics(someMetrics.Draw(t, "metrics")), Time: at.Add(time.Duration(n) * time.Second)})
		}
	}
	return events
}

// same compares as bits, so that NaN equals itself.
func same(a, b float64) bool { return math.IsNaN(a) && math.IsNaN(b) || a == b }

var sample = regexp.MustCompile(`^(uadt_train_\w+)\{(.*)\} (\S+)$`)

// Whatever was emitted, Prometheus reads the latest value of each metric and the
// number of drops and alarms.
func TestPrometheusServesWhatWasEmitted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := NewPrometheus("demo")
		want := map[string]float64{}
		label := func(v string) string {
			return strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(strings.ToValidUTF8(v, "\uFFFD"))
		}
		metrics := func(stage string, m Metrics) {
			for name, v := range m {
				want[fmt.Sprintf(`uadt_train_metric{name="%s",run="demo",stage="%s"}`, name, stage)] = v
			}
		}
		for _, e := range drawEvents(t) {
			p.Emit(e)
			switch e := e.(type) {
			case StepDone:
				want[fmt.Sprintf(`uadt_train_step{run="demo",stage="%s"}`, e.Stage)] = float64(e.Step)
				metrics(e.Stage, e.Metrics)
			case Evaluated:
				metrics(e.Stage, e.Metrics)
			case GroupDropped:
				want[fmt.Sprintf(`uadt_train_groups_dropped_total{reason="%s",run="demo"}`, label(e.Reason))]++
			case Alarm:
				want[fmt.Sprintf(`uadt_train_alarms_total{name="%s",run="demo"}`, e.Name)]++
			}
		}
		answer := httptest.NewRecorder()
		p.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
		seen := 0
		for line := range strings.Lines(answer.Body.String()) {
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, "#") {
				continue
			}
			m := sample.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("not a sample: %q", line)
			}
			got, err := strconv.ParseFloat(m[3], 64)
			value, known := want[m[1]+"{"+m[2]+"}"]
			if err != nil || !known || !same(got, value) {
				t.Fatalf("%s: want %v (%v), %v", line, value, known, err)
			}
			seen++
		}
		if answer.Code != 200 || seen != len(want) {
			t.Fatalf("status %d, %d samples, want %d:\n%s", answer.Code, seen, len(want), answer.Body)
		}
	})
}

// record is one event of a TensorBoard file.
type record struct {
	wall    float64
	step    uint64
	scalars map[string]float32
}

func readBoard(t *testing.T, path string) []record {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []record
	for len(data) > 0 {
		var text []byte
		text, data = unframe(t, data)
		r := record{scalars: scalarsOf(t, text), wall: math.Float64frombits(binary.LittleEndian.Uint64(fields(t, text, 1)[0]))}
		if steps := fields(t, text, 2); len(steps) > 0 {
			r.step, _ = binary.Uvarint(steps[0])
		}
		out = append(out, r)
	}
	return out
}

// A board holds every step that had metrics, in order, at the global step and
// the step's own time, to the precision of float32; a resumed run adds a file
// and leaves the old one as it was.
func TestTensorBoardHoldsWhatWasEmitted(t *testing.T) {
	parent := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(parent, "")
		if err != nil {
			rt.Fatal(err)
		}
		var before []byte
		for incarnation := range 2 {
			board, err := NewTensorBoard(dir, uint64(incarnation), at, slog.New(slog.DiscardHandler))
			if err != nil {
				rt.Fatal(err)
			}
			var want []StepDone
			for _, e := range drawEvents(rt) {
				board.Emit(e)
				if e, ok := e.(Evaluated); ok && len(e.Metrics) > 0 {
					want = append(want, StepDone{Global: e.Global, Metrics: e.Metrics})
				}
				if e, ok := e.(StepDone); ok && len(e.Metrics) > 0 {
					want = append(want, e)
				}
			}
			if err := board.Close(); err != nil {
				rt.Fatal(err)
			}
			name := func(i int) string {
				return filepath.Join(dir, fmt.Sprintf("events.out.tfevents.%d.uadt-train.%d", at.Unix(), i))
			}
			got := readBoard(t, name(incarnation))
			if len(got) != len(want)+1 {
				rt.Fatalf("%d records, want the version and %d", len(got), len(want))
			}
			for i, w := range want {
				g := got[i+1]
				if g.step != uint64(w.Global) || len(g.scalars) != len(w.Metrics) || !w.Time.IsZero() && g.wall != float64(w.Time.Unix()) {
					rt.Fatalf("record %d is %+v, want %+v", i, g, w)
				}
				for name, v := range w.Metrics {
					if got, ok := g.scalars[name]; !ok || !same(float64(got), float64(float32(v))) {
						rt.Fatalf("record %d: %s is %v, want %v", i, name, got, v)
					}
				}
			}
			if incarnation == 0 {
				before, _ = os.ReadFile(name(0))
			} else if after, err := os.ReadFile(name(0)); err != nil || !bytes.Equal(before, after) {
				rt.Fatalf("the board of the run before changed (%v)", err)
			}
		}
	})
}

// partial takes whole writes until room is used up, and then a piece of one.
type partial struct {
	bytes.Buffer
	room int
}

func (w *partial) Write(p []byte) (int, error) {
	if len(p) <= w.room {
		w.room -= len(p)
		return w.Buffer.Write(p)
	}
	n := w.room
	w.room = 0
	w.Buffer.Write(p[:n])
	return n, io.ErrShortWrite
}

func (w *partial) Close() error { return errors.New("quota exceeded") }

// However much of a file the disk takes, the records before the one that it
// refused are whole, nothing comes after it, and the trouble is said once.
func TestTensorBoardOnADiskThatFills(t *testing.T) {
	for room := range 200 {
		var log bytes.Buffer
		disk := &partial{room: room}
		board := &TensorBoard{w: disk, logger: slog.New(slog.NewTextHandler(&log, nil))}
		for n := range 6 {
			board.Emit(step(n+1, Metrics{"a": float64(n)}))
			disk.room += 3 // somebody frees a little, not enough
		}
		if strings.Count(log.String(), "tensorboard is off") > 1 {
			t.Fatalf("room for %d bytes: said more than once:\n%s", room, &log)
		}
		whole, rest := 0, disk.Bytes()
		for len(rest) >= 12 {
			size := 16 + int(binary.LittleEndian.Uint64(rest))
			if len(rest) < size {
				break
			}
			text, _ := unframe(t, rest[:size])
			if got := scalarsOf(t, text)["a"]; got != float32(whole) {
				t.Fatalf("room for %d bytes: record %d holds %v", room, whole, got)
			}
			whole, rest = whole+1, rest[size:]
		}
		if whole < 6 && log.Len() == 0 {
			t.Fatalf("room for %d bytes: %d records of 6 and nothing said", room, whole)
		}
		if err := board.Close(); err == nil || !strings.Contains(err.Error(), "tensorboard file: quota exceeded") {
			t.Fatalf("closing: %v", err)
		}
	}
}

func TestTensorBoardWhereNoneCanBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tb")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewTensorBoard(file, 1, at, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "tensorboard folder") || !strings.Contains(err.Error(), file) {
		t.Errorf("a file for a folder: %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("events.out.tfevents.%d.uadt-train.1", at.Unix())), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := NewTensorBoard(dir, 1, at, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "tensorboard file") {
		t.Errorf("a folder for a file: %v", err)
	}
	var log bytes.Buffer
	board, err := NewTensorBoard(t.TempDir(), 1, at, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := board.Close(); err != nil {
		t.Fatal(err)
	}
	board.Emit(step(1, Metrics{"a": 1})) // one that was on its way
	board.Emit(step(2, Metrics{"a": 1}))
	if strings.Count(log.String(), "\n") != 1 {
		t.Errorf("events after the end said %q, want one line", log.String())
	}
}

// A log of any events is one JSON object a line, with the numbers of the metrics
// as they were; alarms are said at powers of ten and counted at the end.
func TestLogLinesHoldWhatWasEmitted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var out bytes.Buffer
		sink := NewLog(slog.New(slog.NewJSONHandler(&out, nil)), true)
		raised := map[string]int{}
		for _, e := range append(drawEvents(t), RunEnded{Run: "r"}) {
			out.Reset()
			times := 1
			if e, ok := e.(Alarm); ok {
				times = rapid.IntRange(1, 12).Draw(t, "times")
				raised[e.Name] += times
			}
			from := 0
			if e, ok := e.(Alarm); ok {
				from = raised[e.Name] - times
			}
			for range times {
				sink.Emit(e)
			}
			want := 1
			if e, ok := e.(Alarm); ok {
				want = digits(raised[e.Name]) - digits(from)
			}
			if got := strings.Count(out.String(), "\n"); got != want {
				t.Fatalf("%+v gave %d lines, want %d:\n%s", e, got, want, &out)
			}
			if want == 0 {
				continue
			}
			line := map[string]any{}
			if err := json.Unmarshal(out.Bytes()[:bytes.IndexByte(out.Bytes(), '\n')], &line); err != nil {
				t.Fatal(err)
			}
			switch e := e.(type) {
			case Evaluated:
				for name, v := range e.Metrics {
					got, isNumber := line[strings.ReplaceAll(name, "/", ".")].(float64)
					if !math.IsNaN(v) && !math.IsInf(v, 0) && (!isNumber || got != v) {
						t.Fatalf("%s is %v, want %v", name, got, v)
					}
				}
			case RunEnded:
				for name, n := range raised {
					if line["alarm."+name] != float64(n) {
						t.Fatalf("alarm %s is counted as %v, want %d", name, line["alarm."+name], n)
					}
				}
			}
		}
	})
}

// digits is how many powers of ten from 1 on are at most n.
func digits(n int) int {
	if n < 1 {
		return 0
	}
	return len(strconv.Itoa(n))
}
