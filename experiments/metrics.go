package experiments

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"sync"
)

// metricsFile is metrics.jsonl: one JSON object a line, each with a kind and a
// step.
type metricsFile struct {
	mu    sync.Mutex
	path  string
	disk  disk
	file  *os.File // at its end; nil until the first line
	size  int64    // of the whole lines
	lines []metricsLine
}

type metricsLine struct {
	key  metricsKey
	text []byte // with its newline
}

type metricsKey struct {
	Kind string `json:"kind"`
	Step int    `json:"step"`
}

// leading are the columns that a reader wants first; the rest is sorted.
var leading = []string{"kind", "step", "stage", "policy_version", "time"}

// load reads the lines that are there. A last line without its newline is what
// a crash left of a write, and is left out; any other line that cannot be read
// is an error with its number.
func (m *metricsFile) load(path string, d disk) error {
	m.path, m.disk = path, d
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	lines, err := parseMetrics(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	m.lines = lines
	whole := 0
	for _, l := range lines {
		whole += len(l.text)
	}
	m.size = int64(whole)
	if whole != len(data) {
		if err := os.Truncate(path, m.size); err != nil {
			return fmt.Errorf("metrics: cut a torn line: %w", err)
		}
	}
	return nil
}

// parseMetrics splits data into whole lines.
func parseMetrics(data []byte) ([]metricsLine, error) {
	var out []metricsLine
	for n := 1; len(data) > 0; n++ {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			break
		}
		line := metricsLine{text: data[:end+1]}
		var key struct {
			Kind *string `json:"kind"`
			Step *int    `json:"step"`
		}
		if err := json.Unmarshal(line.text, &key); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if key.Kind == nil || key.Step == nil {
			return nil, fmt.Errorf("line %d: no kind or no step", n)
		}
		line.key = metricsKey{*key.Kind, *key.Step}
		out = append(out, line)
		data = data[end+1:]
	}
	return out, nil
}

// PutMetrics makes one line durable: values are float64, int64 or string; a
// float64 that is not finite is left out. kind and step are added to it. The
// pair is unique: a later line takes the place of an earlier one.
func (r *Run) PutMetrics(ctx context.Context, kind string, step int, values map[string]any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	text, err := encodeMetrics(kind, step, values)
	if err != nil {
		return fmt.Errorf("metrics of %s %d: %w", kind, step, err)
	}
	if err := r.metrics.put(metricsLine{metricsKey{kind, step}, text}); err != nil {
		return fmt.Errorf("metrics of %s %d: %w", kind, step, err)
	}
	return nil
}

// encodeMetrics renders one line.
func encodeMetrics(kind string, step int, values map[string]any) ([]byte, error) {
	all := map[string]any{"kind": kind, "step": int64(step)}
	for name, value := range values {
		switch x := value.(type) {
		case float64:
			if math.IsNaN(x) || math.IsInf(x, 0) {
				continue
			}
		case int64, string:
		default:
			return nil, fmt.Errorf("%s is a %T, want float64, int64 or string", name, value)
		}
		if name != "kind" && name != "step" {
			all[name] = value
		}
	}
	var names []string
	for name := range all {
		if !slices.Contains(leading, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	out := []byte{'{'}
	for _, name := range slices.Concat(leading, names) {
		value, ok := all[name]
		if !ok {
			continue
		}
		key, err := json.Marshal(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, key...), ':'), text...)
	}
	return append(out, '}', '\n'), nil
}

// put appends line, or rewrites the file where its pair is there already.
func (m *metricsFile) put(line metricsLine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := slices.IndexFunc(m.lines, func(l metricsLine) bool { return l.key == line.key })
	if at >= 0 {
		lines := slices.Clone(m.lines)
		lines[at] = line
		return m.rewrite(lines)
	}
	return m.append(line)
}

// append writes and syncs one line. What a full disk took of it is cut off.
func (m *metricsFile) append(line metricsLine) error {
	if m.file == nil {
		file, err := os.OpenFile(m.path, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		m.file = file
	}
	if _, err := m.file.Seek(m.size, io.SeekStart); err != nil {
		return err
	}
	_, err := m.disk.through(m.file).Write(line.text)
	if err == nil {
		err = m.file.Sync()
	}
	if err != nil {
		return errors.Join(err, m.file.Truncate(m.size))
	}
	m.lines = append(m.lines, line)
	m.size += int64(len(line.text))
	return nil
}

// rewrite replaces the file by lines.
func (m *metricsFile) rewrite(lines []metricsLine) error {
	var size int64
	err := m.disk.write(m.path, func(w io.Writer) error {
		for _, l := range lines {
			if _, err := w.Write(l.text); err != nil {
				return err
			}
			size += int64(len(l.text))
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.lines, m.size = lines, size
	return m.closeFile() // it was the old file's
}

// cut removes all lines of steps after step.
func (m *metricsFile) cut(step int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var kept []metricsLine
	for _, l := range m.lines {
		if l.key.Step <= step {
			kept = append(kept, l)
		}
	}
	if len(kept) == len(m.lines) {
		return nil
	}
	return m.rewrite(kept)
}

func (m *metricsFile) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closeFile()
}

func (m *metricsFile) closeFile() error {
	if m.file == nil {
		return nil
	}
	err := m.file.Close()
	m.file = nil
	return err
}
