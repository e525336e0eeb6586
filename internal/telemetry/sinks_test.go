package telemetry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

var at = time.Unix(1_700_000_000, 0)

func step(n int, metrics Metrics) StepDone {
	return StepDone{Stage: "rl", Step: n, Global: 10 + n, Metrics: metrics, Time: at}
}

func TestLogWritesALineAStepOnlyWhenAsked(t *testing.T) {
	for _, steps := range []bool{true, false} {
		var out bytes.Buffer
		sink := NewLog(slog.New(slog.NewTextHandler(&out, nil)), steps)
		sink.Emit(step(1, Metrics{"reward/mean": 0.25, "other": 1}))
		if got := strings.Contains(out.String(), "reward.mean=0.25"); got != steps {
			t.Errorf("steps %v: line written is %v: %q", steps, got, out.String())
		}
	}
}

func TestLogNamesEveryEvent(t *testing.T) {
	var out bytes.Buffer
	sink := NewLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), true)
	for _, e := range []Event{
		RunStarted{Run: "r"}, StageStarted{Stage: StagePlan{Name: "rl"}}, GroupDropped{Job: "j", Reason: "deadline", Err: io.EOF},
		step(1, nil), Evaluated{Stage: "rl", Metrics: Metrics{"accuracy/eval": 0.5}}, Alarm{Name: "all_zero_reward", Message: "m"},
		PolicyAdopted{Policy: "1.2-ab"}, CheckpointSaved{Path: "p"}, RunEnded{Run: "r", Digest: "d"},
	} {
		out.Reset()
		sink.Emit(e)
		if strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%T: want one line, got %q", e, out.String())
		}
	}
	if !strings.Contains(out.String(), "digest=d") {
		t.Errorf("the end of the run does not say the digest: %q", out.String())
	}
}

func TestLogSaysALastingAlarmMoreAndMoreRarely(t *testing.T) {
	var out bytes.Buffer
	sink := NewLog(slog.New(slog.NewTextHandler(&out, nil)), true)
	for n := range 150 {
		sink.Emit(Alarm{Name: "zero_variance_share", Step: n})
	}
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("150 alarms gave %d lines, want those of the 1st, 10th and 100th", got)
	}
	sink.Emit(RunEnded{})
	if !strings.Contains(out.String(), "alarm.zero_variance_share=150") {
		t.Errorf("the end of the run does not count the alarms: %q", out.String())
	}
}

// The records are read back by an own reader of the TFRecord layout, every
// checksum verified; tests/python reads the same file with TensorBoard itself.
func TestTensorBoardRecords(t *testing.T) {
	dir := t.TempDir()
	board, err := NewTensorBoard(dir, 3, at, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	board.Emit(step(2, Metrics{"uadt/tau": 0.5, "reward/mean": 1}))
	board.Emit(Evaluated{Global: 12, Metrics: Metrics{"accuracy/eval": 0.75}})
	board.Emit(step(3, nil))
	if err := board.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "events.out.tfevents.*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("event files: %v, %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float32{}
	records := 0
	for len(data) > 0 {
		var record []byte
		record, data = unframe(t, data)
		records++
		for name, value := range scalarsOf(t, record) {
			got[name] = value
		}
	}
	if records != 3 {
		t.Errorf("%d records, want 3: version, step, evaluation", records)
	}
	if got["uadt/tau"] != 0.5 || got["reward/mean"] != 1 || got["accuracy/eval"] != 0.75 || len(got) != 3 {
		t.Errorf("scalars = %v", got)
	}
}

func unframe(t *testing.T, data []byte) (record, rest []byte) {
	t.Helper()
	check := func(what string, b []byte, stored uint32) {
		crc := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
		if want := (crc>>15 | crc<<17) + 0xa282ead8; stored != want {
			t.Fatalf("checksum of the %s is %x, want %x", what, stored, want)
		}
	}
	length := binary.LittleEndian.Uint64(data)
	check("length", data[:8], binary.LittleEndian.Uint32(data[8:]))
	record = data[12 : 12+length]
	check("record", record, binary.LittleEndian.Uint32(data[12+length:]))
	return record, data[16+length:]
}

func scalarsOf(t *testing.T, record []byte) map[string]float32 {
	t.Helper()
	out := map[string]float32{}
	for _, summary := range fields(t, record, 5) {
		for _, value := range fields(t, summary, 1) {
			tag := fields(t, value, 1)[0]
			bits := fields(t, value, 2)[0]
			out[string(tag)] = math.Float32frombits(binary.LittleEndian.Uint32(bits))
		}
	}
	return out
}

// fields returns the payloads of every field of b with the given number.
func fields(t *testing.T, b []byte, want protowire.Number) [][]byte {
	t.Helper()
	var out [][]byte
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(number, kind, b)
		if size < 0 {
			t.Fatal(protowire.ParseError(size))
		}
		if number == want {
			payload := b[:size]
			if kind == protowire.BytesType {
				payload, _ = protowire.ConsumeBytes(b)
			}
			out = append(out, payload)
		}
		b = b[size:]
	}
	return out
}

type failing struct{ calls int }

func (f *failing) Write([]byte) (int, error) { f.calls++; return 0, errors.New("no space left") }
func (f *failing) Close() error              { return nil }

func TestTensorBoardGoesQuietOnAFullDisk(t *testing.T) {
	var out bytes.Buffer
	disk := &failing{}
	board := &TensorBoard{w: disk, logger: slog.New(slog.NewTextHandler(&out, nil))}
	for n := range 3 {
		board.Emit(step(n, Metrics{"a": 1}))
	}
	if disk.calls != 1 || strings.Count(out.String(), "no space left") != 1 {
		t.Errorf("%d writes, log %q; want one of each", disk.calls, out.String())
	}
}

func TestPrometheusServesLatestValues(t *testing.T) {
	p := NewPrometheus("demo")
	p.Emit(step(1, Metrics{"uadt/tau": 0.5}))
	p.Emit(step(2, Metrics{"uadt/tau": 0.25}))
	p.Emit(GroupDropped{Reason: "deadline"})
	p.Emit(GroupDropped{Reason: "deadline"})
	p.Emit(Alarm{Name: "all_zero_reward"})
	recorder := httptest.NewRecorder()
	p.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`uadt_train_metric{name="uadt/tau",run="demo",stage="rl"} 0.25`,
		`uadt_train_step{run="demo",stage="rl"} 2`,
		`uadt_train_groups_dropped_total{reason="deadline",run="demo"} 2`,
		`uadt_train_alarms_total{name="all_zero_reward",run="demo"} 1`,
	} {
		if !strings.Contains(recorder.Body.String(), want) {
			t.Errorf("missing %s in\n%s", want, recorder.Body.String())
		}
	}
}

func TestProgressDrawsAndLeavesTheTerminal(t *testing.T) {
	var out bytes.Buffer
	clock := at
	p := NewProgress(&out, func() time.Time { clock = clock.Add(time.Second); return clock })
	p.Emit(StageStarted{Stage: StagePlan{Name: "think", Kind: "rl", Steps: 2}})
	p.Emit(RolloutProgress{Done: 3, All: 4})
	p.Emit(step(1, Metrics{"uadt/tau": 0.5, "accuracy/train": 0.25}))
	p.Emit(step(2, Metrics{"uadt/tau": 0.4}))
	p.Emit(RunEnded{})
	p.Close()
	p.Close()
	if got := noteOf(Metrics{"uadt/tau": 0.5, "accuracy/train": 0.25}); got != "accuracy 0.250  tau 0.500" {
		t.Errorf("note = %q", got)
	}
}

// A line that a logger writes must reach the terminal whether the bars are
// drawn, being cleared, or gone.
func TestNoLineIsLostToTheBars(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, time.Now)
	p.Emit(StageStarted{Stage: StagePlan{Name: "think", Kind: "rl", Steps: 3}})
	for n, line := range []string{"first line\n", "second line\n", "third line\n"} {
		if _, err := io.WriteString(p, line); err != nil {
			t.Fatal(err)
		}
		p.Emit(RolloutProgress{Done: 4, All: 4})
		p.Emit(step(n+1, Metrics{"uadt/tau": 0.5}))
	}
	p.Emit(RunEnded{})
	if _, err := io.WriteString(p, "last line\n"); err != nil {
		t.Fatal(err)
	}
	p.Close()
	for _, want := range []string{"first line", "second line", "third line", "last line"} {
		if strings.Count(out.String(), want) != 1 {
			t.Errorf("%q is not there once:\n%q", want, out.String())
		}
	}
}

func TestTeeKeepsOrder(t *testing.T) {
	var got []string
	record := func(name string) Sink { return sinkFunc(func(Event) { got = append(got, name) }) }
	Tee(record("a"), record("b")).Emit(RunEnded{})
	Discard().Emit(RunEnded{})
	if strings.Join(got, "") != "ab" {
		t.Errorf("order = %v", got)
	}
}

type sinkFunc func(Event)

func (f sinkFunc) Emit(e Event) { f(e) }
