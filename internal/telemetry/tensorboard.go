package telemetry

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// TensorBoard is a sink that writes scalars as TensorBoard event records.
type TensorBoard struct {
	mu     sync.Mutex
	w      io.WriteCloser
	logger *slog.Logger
	broken bool
}

// Field numbers of tensorflow.Event and tensorflow.Summary.Value.
const (
	eventWallTime    protowire.Number = 1
	eventStep        protowire.Number = 2
	eventFileVersion protowire.Number = 3
	eventSummary     protowire.Number = 5
	summaryValue     protowire.Number = 1
	valueTag         protowire.Number = 1
	valueSimple      protowire.Number = 2
)

// NewTensorBoard creates an event file in dir. Its name carries incarnation, so
// that a resumed run adds a file instead of writing into an old one; started
// is the wall time of the first record.
func NewTensorBoard(dir string, incarnation uint64, started time.Time, logger *slog.Logger) (*TensorBoard, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("tensorboard folder: %w", err)
	}
	name := fmt.Sprintf("events.out.tfevents.%d.uadt-train.%d", started.Unix(), incarnation)
	file, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("tensorboard file: %w", err)
	}
	t := &TensorBoard{w: file, logger: logger}
	version := appendWallTime(nil, started)
	version = protowire.AppendTag(version, eventFileVersion, protowire.BytesType)
	version = protowire.AppendString(version, "brain.Event:2")
	t.write(version)
	return t, nil
}

// Emit implements Sink: StepDone and Evaluated become scalars at the global step.
func (t *TensorBoard) Emit(e Event) {
	switch e := e.(type) {
	case StepDone:
		t.scalars(e.Metrics, e.Global, e.Time)
	case Evaluated:
		t.scalars(e.Metrics, e.Global, time.Time{})
	}
}

// Close closes the event file.
func (t *TensorBoard) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.w.Close(); err != nil {
		return fmt.Errorf("tensorboard file: %w", err)
	}
	return nil
}

func (t *TensorBoard) scalars(metrics Metrics, step int, at time.Time) {
	if len(metrics) == 0 {
		return
	}
	names := make([]string, 0, len(metrics))
	for name := range metrics {
		names = append(names, name)
	}
	sort.Strings(names)
	var summary []byte
	for _, name := range names {
		value := protowire.AppendTag(nil, valueTag, protowire.BytesType)
		value = protowire.AppendString(value, name)
		value = protowire.AppendTag(value, valueSimple, protowire.Fixed32Type)
		value = protowire.AppendFixed32(value, math.Float32bits(float32(metrics[name])))
		summary = protowire.AppendTag(summary, summaryValue, protowire.BytesType)
		summary = protowire.AppendBytes(summary, value)
	}
	event := appendWallTime(nil, at)
	event = protowire.AppendTag(event, eventStep, protowire.VarintType)
	event = protowire.AppendVarint(event, uint64(step))
	event = protowire.AppendTag(event, eventSummary, protowire.BytesType)
	event = protowire.AppendBytes(event, summary)
	t.write(event)
}

func appendWallTime(b []byte, at time.Time) []byte {
	if at.IsZero() {
		at = time.Now()
	}
	b = protowire.AppendTag(b, eventWallTime, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, math.Float64bits(float64(at.UnixNano())/1e9))
}

// write appends one TFRecord. A failure is said once and ends the writing: a
// full disk must not stop a run for the sake of its curves.
func (t *TensorBoard) write(record []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken {
		return
	}
	if _, err := t.w.Write(frame(record)); err != nil {
		t.broken = true
		t.logger.Error("tensorboard is off from here", "error", err)
	}
}

// frame wraps record as a TFRecord: length, masked CRC of the length, record,
// masked CRC of the record, all little-endian.
func frame(record []byte) []byte {
	out := binary.LittleEndian.AppendUint64(make([]byte, 0, len(record)+16), uint64(len(record)))
	out = binary.LittleEndian.AppendUint32(out, maskedCRC(out[:8]))
	out = append(out, record...)
	return binary.LittleEndian.AppendUint32(out, maskedCRC(record))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// maskedCRC is the CRC-32C of b, rotated and offset as TFRecord wants it, so
// that a CRC over data that holds CRCs stays meaningful.
func maskedCRC(b []byte) uint32 {
	crc := crc32.Checksum(b, castagnoli)
	return (crc>>15 | crc<<17) + 0xa282ead8
}
