package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// Any array that encoding/json writes, compact or indented, is cut into its
// elements.
func TestScanArrayCutsWhatJSONWrites(t *testing.T) {
	value := rapid.OneOf(
		rapid.String().AsAny(), rapid.Int().AsAny(), rapid.Bool().AsAny(), rapid.Just[any](nil),
		rapid.MapOf(rapid.String(), rapid.SliceOfN(rapid.String(), 0, 3)).AsAny(),
	)
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(value, 0, 8).Draw(t, "values")
		data, err := json.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		if values == nil {
			data = []byte("[]")
		}
		if rapid.Bool().Draw(t, "indented") {
			var out bytes.Buffer
			if err := json.Indent(&out, data, "", "  "); err != nil {
				t.Fatal(err)
			}
			data = out.Bytes()
		}
		spans, err := scanArray(bytes.NewReader(data))
		if err != nil || len(spans) != len(values) {
			t.Fatalf("%d spans, %v, want %d in %s", len(spans), err, len(values), data)
		}
		for i, s := range spans {
			var a bytes.Buffer
			if err := json.Compact(&a, data[s.Offset:s.Offset+s.Length]); err != nil {
				t.Fatalf("element %d: %v", i, err)
			}
			b, err := json.Marshal(values[i])
			if err != nil {
				t.Fatal(err)
			}
			if a.String() != string(b) {
				t.Errorf("element %d is %s, want %s", i, a.String(), b)
			}
		}
	})
}

func TestScanLines(t *testing.T) {
	for text, want := range map[string][]string{
		"":             nil,
		"\n \n\t\n":    nil,
		"a":            {"a"},
		"a\nb":         {"a", "b"},
		"a\n\n\nb\n":   {"a", "b"},
		"\r\na b\r\nc": {"a b\r", "c"},
	} {
		spans, err := scanLines(iotest.OneByteReader(strings.NewReader(text)))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range spans {
			got = append(got, text[s.Offset:s.Offset+s.Length])
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
}

// A reader that fails is an error with its place, never a short index.
func TestScansReportReadErrors(t *testing.T) {
	broken := errors.New("disk on fire")
	failing := func() *failingReader { return &failingReader{text: `[{"a":1},{"b`, err: broken} }
	if _, err := scanArray(failing()); !errors.Is(err, broken) || !strings.Contains(err.Error(), "byte 12") {
		t.Errorf("array: %v", err)
	}
	if _, err := scanLines(failing()); !errors.Is(err, broken) || !strings.Contains(err.Error(), "byte 12") {
		t.Errorf("lines: %v", err)
	}
	if _, _, err := scanCSV(failing(), ',', nil); !errors.Is(err, broken) {
		t.Errorf("table: %v", err)
	}
}

// failingReader gives its text and then its error.
type failingReader struct {
	text string
	err  error
}

func (r *failingReader) Read(p []byte) (int, error) {
	if r.text == "" {
		return 0, r.err
	}
	n := copy(p, r.text)
	r.text = r.text[n:]
	return n, nil
}

func TestTablesWithQuotesAndLineBreaks(t *testing.T) {
	text := "\ufeffIndex,Question,answer\n1,\"two\nlines, one cell\",A\n2,a \"bare\" quote,B\n3,short\n"
	layout, spans, err := scanCSV(strings.NewReader(text), ',', nil)
	if err != nil || len(spans) != 3 {
		t.Fatalf("%d rows, %v", len(spans), err)
	}
	want := []map[string]string{
		{"index": "1", "question": "two\nlines, one cell", "answer": "A"},
		{"index": "2", "question": `a "bare" quote`, "answer": "B"},
		{"index": "3", "question": "short"},
	}
	for i, s := range spans {
		row, err := layout.row([]byte(text[s.Offset : s.Offset+s.Length]))
		if err != nil || fmt.Sprint(row) != fmt.Sprint(want[i]) {
			t.Errorf("row %d = %q, %v, want %q", i, row, err, want[i])
		}
	}
	if _, err := layout.row([]byte("1,2,3,4")); !errors.Is(err, ErrFormat) {
		t.Errorf("a row with too many fields: %v", err)
	}
}

func TestKeyColumns(t *testing.T) {
	for header, want := range map[string]int{
		"image,base64": 0, "base64,id": 1, "base64,whatever": 1, "a,name,base64": 1, "base64": -1, "image,data": -1,
	} {
		layout, _, err := scanCSV(strings.NewReader(header+"\n"), ',', nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := keyColumn(layout); got != want {
			t.Errorf("%s: key column %d, want %d", header, got, want)
		}
	}
	dir := t.TempDir()
	if _, err := openKeyed(write(t, dir, "a.csv", "image,data\nx,y\n")); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "base64") {
		t.Errorf("no base64 column: %v", err)
	}
	if _, err := openKeyed(filepath.Join(dir, "none.csv")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// What is saved is loaded, whatever it holds.
func TestIndexRoundTrip(t *testing.T) {
	path := write(t, t.TempDir(), "a.json", "[]")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := digestOf(path)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 20).Draw(t, "records")
		ix := &index{Digest: digest, Size: info.Size(), Modified: info.ModTime().UTC(), Format: formatTSV,
			Records: n, Header: []string{"a\nb", "c"}, Checked: "k"}
		for range n {
			from := rapid.Int64Range(0, ix.Size).Draw(t, "from")
			ix.spans = append(ix.spans, span{from, rapid.Int64Range(0, ix.Size-from).Draw(t, "length")})
		}
		if n > 0 {
			ix.Bad = []badRef{{rapid.IntRange(0, n-1).Draw(t, "bad"), "why\n"}}
		}
		if err := ix.save(path); err != nil {
			t.Fatal(err)
		}
		got, err := loadIndex(path, info)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", *ix) {
			t.Errorf("loaded %+v, saved %+v", *got, *ix)
		}
	})
	if err := os.Chtimes(path, info.ModTime().Add(1), info.ModTime().Add(1)); err != nil {
		t.Fatal(err)
	}
	touched, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loadIndex(path, touched); !errors.Is(err, errStaleIndex) {
		t.Errorf("the index of another time was loaded: %v", err)
	}
}
