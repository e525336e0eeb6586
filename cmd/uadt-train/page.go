package main

import (
	_ "embed" // the page's template
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/uadt-train/uadt-train/internal/evaluate"
)

// detectType is the media type of encoded image bytes.
func detectType(data []byte) string {
	kind := http.DetectContentType(data)
	if !strings.HasPrefix(kind, "image/") {
		return "image/tiff" // the one supported type that Go does not detect; a wrong guess is refused by name
	}
	return kind
}

// ticker counts answers on stderr: a line on a terminal, every tenth without.
type ticker struct {
	m    *Main
	all  int
	mu   sync.Mutex
	done int
}

func newTicker(m *Main, all int) *ticker { return &ticker{m: m, all: all} }

func (t *ticker) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done++
	switch {
	case t.m.Terminal:
		fmt.Fprintf(t.m.Stderr, "\r%d/%d answered", t.done, t.all)
		if t.done == t.all {
			fmt.Fprintln(t.m.Stderr)
		}
	case t.done == t.all || t.all >= 10 && t.done%(t.all/10) == 0:
		fmt.Fprintf(t.m.Stderr, "%d/%d answered\n", t.done, t.all)
	}
}

// summaryRow is one line of the table: a set of records and its numbers.
type summaryRow struct {
	Name string
	Cell evaluate.Cell
}

func rowsOf(s evaluate.Summary) []summaryRow {
	rows := []summaryRow{{"all records", s.Overall}}
	for _, g := range s.Groups {
		name := g.Name
		if name == "" {
			name = "(not said)"
		}
		if g.By == "dataset" {
			name = filepath.Base(name)
		}
		rows = append(rows, summaryRow{g.By + " " + name, g.Cell})
	}
	return rows
}

// estimate renders a mean with its interval, in percent.
func estimate(e evaluate.Estimate) string {
	if e.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f [%.1f, %.1f]", 100*e.Value, 100*e.Low, 100*e.High)
}

func (m *Main) printSummary(dir string, s evaluate.Summary) error {
	out := &printer{w: m.Stdout}
	out.printf("%-34s %6s  %-20s %-20s %-20s %8s\n", "accuracy, %, with 95 % intervals", "n", "strict", "lenient", "right form", "majority")
	for _, r := range rowsOf(s) {
		out.printf("%-34s %6d  %-20s %-20s %-20s %8.1f\n", r.Name, r.Cell.Records, estimate(r.Cell.Strict), estimate(r.Cell.Lenient), estimate(r.Cell.Formatted), 100*r.Cell.Majority)
	}
	for _, p := range s.Overall.Passes {
		out.printf("pass@%d %s\n", p.K, estimate(p.Estimate))
	}
	out.printf("macro mean over question types: strict %.1f, lenient %.1f\n", 100*s.MacroStrict, 100*s.MacroLenient)
	if s.Unanswered+s.NoGold > 0 {
		out.printf("%d records were not answered, %d have no usable gold answer; neither counts\n", s.Unanswered, s.NoGold)
	}
	out.printf("%s: predictions.jsonl, summary.json, report.html\n", dir)
	return out.err
}

//go:embed report.html
var pageText string

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"estimate": estimate, "rows": rowsOf, "percent": func(x float64) string { return fmt.Sprintf("%.1f", 100*x) },
}).Parse(pageText))

// writePage writes the evaluation as one self-contained page.
func writePage(path string, settings evalSettings, summary evaluate.Summary, examples []example) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := page.Execute(file, struct {
		Settings evalSettings
		Summary  evaluate.Summary
		Examples []example
	}{settings, summary, examples}); err != nil {
		return errors.Join(fmt.Errorf("report: %w", err), file.Close())
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
