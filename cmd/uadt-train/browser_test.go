//go:build browser

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/evaluate"
)

// TestBrowserReport opens the page of an evaluation as a reader would: from a
// file, without a network, on a wide and a narrow screen, by keyboard.
func TestBrowserReport(t *testing.T) {
	l := lab(t)
	out := filepath.Join(t.TempDir(), "eval")
	invoke(t, evalArgs(t, l, out)...).expect(t, exitDone)
	var answers []prediction
	for _, line := range readPredictionLines(t, out) {
		var p prediction
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, p)
	}
	b := startBrowser(t)
	b.width(1200)
	url := "file://" + filepath.Join(out, "report.html")
	b.open(url)
	checkTables(t, b, answers)
	checkExamples(t, b, answers)
	checkReading(t, b)
	b.eval("document.querySelectorAll('details').forEach(d => d.open = true), true", new(bool))
	b.picture("wide")
	for _, pixels := range []int{1200, 1000, 400} {
		b.width(pixels)
		var wide int
		b.eval("document.scrollingElement.scrollWidth", &wide)
		if wide > pixels {
			t.Errorf("the page is %d pixels wide on a screen of %d", wide, pixels)
		}
	}
	b.picture("narrow")
	checkQuiet(t, b, url)

	// Answers of which no two columns count the same: strictly right 3 of 8, leniently 5, in form 4, right if in form 3 of 4.
	lines := readPredictionLines(t, out)
	for i := range lines {
		right := "<answer>" + answers[i].Gold + "</answer>"
		text := []string{"no answer", "<think>look</think>" + right, "<think>look</think><answer>nothing</answer>" + right, "<think>look</think><answer>nothing</answer>"}[[]int{1, 1, 1, 2, 2, 3, 0, 0}[i]]
		var p prediction
		if err := json.Unmarshal([]byte(lines[i]), &p); err != nil {
			t.Fatal(err)
		}
		p.Text = text
		line, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		lines[i] = string(line)
	}
	writeFile(t, filepath.Join(out, "predictions.jsonl"), []byte(strings.Join(lines, "\n")+"\n"))
	invoke(t, evalArgs(t, l, out)...).expect(t, exitDone)
	b.open(url)
	checkSummary(t, b, filepath.Join(out, "summary.json"))
}

// checkSummary compares every number of the table with summary.json.
func checkSummary(t *testing.T, b *browser, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Summary evaluate.Summary }
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	cells := []evaluate.Cell{file.Summary.Overall}
	for _, g := range file.Summary.Groups {
		cells = append(cells, g.Cell)
	}
	rows := tableRows(b, "summary")
	if len(rows) != len(cells) {
		t.Fatalf("%d rows, the summary has %d", len(rows), len(cells))
	}
	for i, c := range cells {
		want := []string{strconv.Itoa(c.Records)}
		for _, e := range []evaluate.Estimate{c.Strict, c.Lenient, c.Formatted, c.GivenFormat} {
			want = append(want, fmt.Sprintf("%.1f [%.1f, %.1f]", 100*e.Value, 100*e.Low, 100*e.High))
		}
		want = append(want, fmt.Sprintf("%.1f", 100*c.Majority))
		if got := slices.Concat(rows[i][1:3], rows[i][4:]); !slices.Equal(got, want) {
			t.Errorf("row %q says %q, the summary %q", rows[i][0], got, want)
		}
		for k, a := range want[1:5] {
			if i == 0 && slices.Contains(want[k+2:5], a) {
				t.Errorf("columns %q cannot be told apart", want)
			}
		}
	}
}

// tableRows reads the cells of a table's body.
func tableRows(b *browser, id string) [][]string {
	b.t.Helper()
	var rows [][]string
	b.eval(fmt.Sprintf("[...document.querySelectorAll('#%s tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim()))", id), &rows)
	return rows
}

// checkTables compares what the tables say with the lines of predictions.jsonl.
func checkTables(t *testing.T, b *browser, answers []prediction) {
	t.Helper()
	table := func(id string) map[string][]string {
		out := map[string][]string{}
		for _, r := range tableRows(b, id) {
			out[r[0]] = r[1:]
		}
		return out
	}
	strict, lenient, formatted, reasons := 0, 0, 0, map[string]int{}
	for _, p := range answers {
		reasons[p.Strict.Reason]++
		for value, count := range map[*int]bool{&strict: p.Strict.Correct, &lenient: p.Lenient.Correct, &formatted: p.Formatted} {
			if count {
				*value++
			}
		}
	}
	summary := table("summary")
	for _, name := range []string{"all records", "dataset in_domain.json"} {
		row := summary[name]
		if len(row) != 7 || row[0] != strconv.Itoa(len(answers)) {
			t.Fatalf("row %q is %q, want %d records", name, row, len(answers))
		}
		for column, count := range map[int]int{1: strict, 3: lenient, 4: formatted} {
			if want := fmt.Sprintf("%.1f [", 100*float64(count)/float64(len(answers))); !strings.HasPrefix(row[column], want) {
				t.Errorf("row %q, column %d says %q, the predictions %q", name, column+1, row[column], want)
			}
		}
	}
	shown := table("reasons")
	if len(shown) != len(reasons) {
		t.Errorf("reasons %v, the predictions have %v", shown, reasons)
	}
	for reason, n := range reasons {
		if row := shown[reason]; len(row) != 1 || row[0] != strconv.Itoa(n) {
			t.Errorf("reason %s: %q, want %d", reason, row, n)
		}
	}
}

// checkExamples opens and closes an example by keyboard and looks at its image.
func checkExamples(t *testing.T, b *browser, answers []prediction) {
	t.Helper()
	type example struct {
		ID, Text, Verdict string
		Alts              []string
		Widths            []int
		Embedded          bool
	}
	var shown []example
	b.eval(`Promise.all([...document.images].map(i => i.decode())).then(() => [...document.querySelectorAll('details')].map(d => ({
		ID: d.id, Text: d.querySelector('pre').textContent, Verdict: d.querySelector('summary span').textContent,
		Alts: [...d.querySelectorAll('img')].map(i => i.alt), Widths: [...d.querySelectorAll('img')].map(i => i.naturalWidth),
		Embedded: [...d.querySelectorAll('img')].every(i => i.src.startsWith('data:image/png'))})))`, &shown)
	by := map[string]prediction{}
	verdicts := map[string]int{}
	for _, p := range answers {
		by[p.ID] = p
		verdicts[verdict(p)]++
	}
	want := min(examplesEach, verdicts["right"]) + min(examplesEach, verdicts["wrong"])
	if len(shown) != want {
		t.Fatalf("%d examples of %v, want %d", len(shown), verdicts, want)
	}
	for _, e := range shown {
		if p := by[e.ID]; e.Text != p.Text || e.Verdict != verdict(p) {
			t.Errorf("example %s shows %q as %s, the prediction is %q, %s", e.ID, e.Text, e.Verdict, p.Text, verdict(p))
		}
		if len(e.Widths) != 1 || e.Widths[0] == 0 || !e.Embedded || !strings.Contains(e.Alts[0], "phantom") {
			t.Errorf("example %s: images %+v, want one phantom, embedded and named", e.ID, e)
		}
	}
	state := func() (open, visible bool) {
		b.eval("document.querySelector('details').open", &open)
		b.eval("document.querySelector('img').checkVisibility() && document.querySelector('img').getBoundingClientRect().width > 0", &visible)
		return open, visible
	}
	if open, visible := state(); open || visible {
		t.Errorf("before a key: open %v, image visible %v", open, visible)
	}
	b.press("Tab", "", 9) // to the first thing that takes a key
	b.press("Enter", "\r", 13)
	if open, visible := state(); !open || !visible {
		t.Errorf("after Tab and Enter: open %v, image visible %v", open, visible)
	}
	b.press(" ", " ", 32)
	if open, _ := state(); open {
		t.Error("the space bar does not close it")
	}
}

func verdict(p prediction) string {
	if p.Strict.Correct {
		return "right"
	}
	return "wrong"
}

// checkReading looks for what a reader needs who sees badly or not at all: WCAG's
// contrast of 4.5, names of images and columns, a language and a title.
func checkReading(t *testing.T, b *browser) {
	t.Helper()
	var problems []string
	b.eval(`(() => {
		const out = [], open = document.querySelectorAll('details');
		open.forEach(d => d.open = true);
		const channels = c => c.match(/[\d.]+/g).map(Number);
		const light = c => channels(c).slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
			.reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
		const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if ((channels(c)[3] ?? 1) === 1) return c; } return 'rgb(255,255,255)'; };
		const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		let read = 0;
		for (let n; n = texts.nextNode();) {
			if (!n.textContent.trim()) continue;
			const e = n.parentElement, a = light(getComputedStyle(e).color), b = light(ground(e));
			const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
			read++;
			if (contrast < 4.5) out.push('contrast ' + contrast.toFixed(2) + ' of ' + n.textContent.trim().slice(0, 40));
		}
		if (read < 20) out.push('only ' + read + ' texts');
		if (!document.documentElement.lang || !document.title) out.push('no language or title');
		if (document.querySelectorAll('h1').length !== 1 || !document.querySelector('main')) out.push('not one h1, or no main');
		document.querySelectorAll('img').forEach(i => i.alt || out.push('an image without a name'));
		document.querySelectorAll('svg').forEach(s => s.getAttribute('aria-label') || out.push('a bar without a name'));
		document.querySelectorAll('thead th').forEach(h => h.textContent.trim() && h.scope || out.push('a column without a name'));
		open.forEach(d => d.open = false);
		return out;
	})()`, &problems)
	if len(problems) > 0 {
		t.Errorf("hard to read: %q", problems)
	}
}

// checkQuiet finds what the page asked for and complained of since it was opened.
func checkQuiet(t *testing.T, b *browser, url string) {
	t.Helper()
	asked := 0
	for _, e := range b.events {
		switch e.Method {
		case "Network.requestWillBeSent":
			var sent struct{ Request struct{ URL string } }
			if err := json.Unmarshal(e.Params, &sent); err != nil {
				t.Fatal(err)
			}
			asked++
			if sent.Request.URL != url && !strings.HasPrefix(sent.Request.URL, "data:") {
				t.Errorf("the page asks for %s", sent.Request.URL)
			}
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
			t.Errorf("the page complains: %s %s", e.Method, e.Params)
		}
	}
	if asked == 0 {
		t.Error("no request was seen, not even that for the page")
	}
}
