package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// metricLine is one line of metrics.jsonl.
type metricLine map[string]any

func (l metricLine) number(name string) (float64, bool) {
	v, ok := l[name].(float64)
	return v, ok
}

func (l metricLine) text(name string) string {
	v, _ := l[name].(string)
	return v
}

// readMetrics reads metrics.jsonl of a run directory.
func readMetrics(dir string) ([]metricLine, error) {
	path := filepath.Join(dir, "metrics.jsonl")
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	defer file.Close() //nolint:errcheck // read-only
	var lines []metricLine
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for n := 1; scanner.Scan(); n++ {
		var line metricLine
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		lines = append(lines, line)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return lines, nil
}

// transcript says in plain words what a run did: accuracies before and after
// its stages, tau and omega over time, and where to look further.
func (m *Main) transcript(dir string) error {
	lines, err := readMetrics(dir)
	if err != nil {
		return err
	}
	note, err := rehearsed(dir)
	if err != nil {
		return err
	}
	out := &printer{w: m.Stdout}
	out.printf("\n%s", note)
	evaluations(out, lines)
	shaping(out, lines)
	g, measured, err := gates(dir)
	if err != nil {
		return err
	}
	if measured {
		out.printf("did the task need depth when RL began?\n%s\n", indent(g.String()))
	}
	out.printf("run directory: %s\n", dir)
	out.printf("  metrics.jsonl  ledger/*.parquet  tb/ (TensorBoard)  checkpoints/ (open in transformers and vLLM)\n")
	out.printf("UADT's formula here is a reconstruction; phantoms are not patients; not for clinical use.\n")
	return out.err
}

// evaluations prints a row for each held-out evaluation.
func evaluations(out *printer, lines []metricLine) {
	var rows []metricLine
	for _, l := range lines {
		if l.text("kind") == "eval" {
			rows = append(rows, l)
		}
	}
	if len(rows) == 0 {
		return
	}
	out.printf("held-out accuracy                        sampled at T=1   pass@k   greedy\n")
	for i, l := range rows {
		out.printf("  %-38s", evaluationName(l, i == len(rows)-1))
		for _, column := range []struct {
			name  string
			width int
		}{{"accuracy/eval", 14}, {"accuracy/eval_passk", 9}, {"accuracy/eval_greedy", 9}} {
			text := "-"
			if v, ok := l.number(column.name); ok {
				text = fmt.Sprintf("%.1f %%", 100*v)
			}
			out.printf("%*s", column.width, text)
		}
		out.printf("\n")
	}
}

func evaluationName(l metricLine, last bool) string {
	version, _ := l.number("policy_version")
	switch {
	case l.text("stage") == baseStage:
		return "before SFT (the base checkpoint)"
	case version == 0:
		return "after SFT, before RL"
	case last:
		return fmt.Sprintf("after RL (%.0f steps)", version)
	}
	return fmt.Sprintf("during RL (step %.0f)", version)
}

// shaping prints tau, omega and the training accuracy at a handful of RL steps.
func shaping(out *printer, lines []metricLine) {
	var steps []metricLine
	for _, l := range lines {
		if _, ok := l.number("uadt/tau"); ok && l.text("kind") == "step" {
			steps = append(steps, l)
		}
	}
	if len(steps) == 0 {
		return
	}
	const columns = 7
	out.printf("\nRL step                  ")
	picked := pick(steps, columns)
	for _, l := range picked {
		version, _ := l.number("policy_version")
		out.printf("%8.0f", version)
	}
	out.printf("\n")
	for _, row := range []struct{ label, name string }{
		{"tau, nats", "uadt/tau"}, {"omega, mean", "uadt/omega_mean"}, {"entropy H, nats", "entropy/mean"},
		{"accuracy, train", "accuracy/train"}, {"reward", "reward/mean"}, {"length, tokens", "rollout/length_mean"},
		{"groups without variance", "uadt/zero_variance_groups"},
	} {
		out.printf("  %-23s", row.label)
		for _, l := range picked {
			text := "-"
			if v, ok := l.number(row.name); ok {
				text = fmt.Sprintf("%.3f", v)
			}
			out.printf("%8s", text)
		}
		out.printf("\n")
	}
	out.printf("\n")
}

// pick takes n lines spread evenly, the first and the last among them.
func pick(lines []metricLine, n int) []metricLine {
	if len(lines) <= n {
		return lines
	}
	var out []metricLine
	for i := range n {
		out = append(out, lines[i*(len(lines)-1)/(n-1)])
	}
	return out
}

// indent moves every line of text to the right, as the table above it.
func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ") + "\n"
}
