package main

import (
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

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"estimate": estimate, "rows": rowsOf, "percent": func(x float64) string { return fmt.Sprintf("%.1f", 100*x) },
}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd}
td.n{text-align:right}svg{vertical-align:middle}p.note{color:#666}
</style>
<h1>Evaluation</h1>
<p>{{with .Settings}}{{if .Model}}Model {{.Model}} (sha256 {{.ModelDigest}}){{else}}Servers {{range .Servers}}{{.}} {{end}}{{end}},
protocol {{.Protocol}}, temperature {{.Temperature}}, {{.Samples}} answer(s) a question, at most {{.MaxTokens}} tokens{{if .WithoutImages}}, <b>images left out</b>{{end}}.{{end}}</p>
<table><tr><th>records<th>n<th>strict, %<th><th>lenient, %<th>right form, %<th>strict given form, %<th>majority, %</tr>
{{range rows .Summary}}<tr><td>{{.Name}}<td class="n">{{.Cell.Records}}<td>{{estimate .Cell.Strict}}
<td><svg width="120" height="14" role="img" aria-label="strict accuracy"><rect width="120" height="14" fill="#eee"/>
<rect width="{{percent .Cell.Strict.Value}}%" height="14" fill="#4a7ab5"/>
<line x1="{{percent .Cell.Strict.Low}}%" x2="{{percent .Cell.Strict.High}}%" y1="7" y2="7" stroke="#222"/>
<line x1="{{percent .Cell.Majority}}%" x2="{{percent .Cell.Majority}}%" y1="0" y2="14" stroke="#c33"/></svg>
<td>{{estimate .Cell.Lenient}}<td>{{estimate .Cell.Formatted}}<td>{{estimate .Cell.GivenFormat}}<td>{{percent .Cell.Majority}}</tr>
{{end}}</table>
<p class="note">Blue: strict accuracy; black: its 95 % interval ({{.Summary.Overall.Strict.Method}}); red: always giving the commonest answer.
Macro mean over question types: strict {{percent .Summary.MacroStrict}} %, lenient {{percent .Summary.MacroLenient}} %.</p>
<h2>How answers are scored</h2>
<p>Strict: from the single answer block, as in training; truncated answers and answers in the wrong form are wrong.
Lenient: from the last answer block or the last letter. Choices need the exact letter or the exact set; open answers match by
name after normalisation, with synonym table version {{.Summary.SynonymVersion}}. The authors of OphthaReason publish no scoring,
so this is ours. {{.Summary.Unanswered}} records were not answered and {{.Summary.NoGold}} have no usable gold answer; neither counts.</p>
<h2>Why answers counted as they did</h2>
<table><tr><th>reason<th>answers</tr>{{range $reason, $n := .Summary.Reasons}}<tr><td>{{$reason}}<td>{{$n}}</tr>{{end}}</table>
<p class="note">Not for clinical use.</p></html>
`))

// writePage writes the evaluation as one self-contained page.
func writePage(path string, settings evalSettings, summary evaluate.Summary) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := page.Execute(file, struct {
		Settings evalSettings
		Summary  evaluate.Summary
	}{settings, summary}); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
