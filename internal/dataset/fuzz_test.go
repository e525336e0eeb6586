package dataset

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// Whatever the scanner takes as an array of objects must cut it as a JSON
// parser does.
func FuzzScanArray(f *testing.F) {
	for _, seed := range []string{`[]`, ` [ {"a":"]}"} , {"b":[1,{"c":"\\\""}]} ]`, `[1,"x,]",null]`, "\ufeff[{}]", `[{"a":1}`, `[{}}]`, `{`, `[[[]]]x`, `["\`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		spans, err := scanArray(bytes.NewReader(data))
		slow, slowErr := scanArray(iotest.OneByteReader(bytes.NewReader(data)))
		if (err == nil) != (slowErr == nil) || len(spans) != len(slow) {
			t.Fatalf("byte by byte: %d spans, %v; at once: %d, %v", len(slow), slowErr, len(spans), err)
		}
		for i, s := range spans {
			if s.Offset < 0 || s.Length <= 0 || s.Offset+s.Length > int64(len(data)) || i > 0 && s.Offset < spans[i-1].Offset+spans[i-1].Length {
				t.Fatalf("span %d is %v in %d bytes", i, s, len(data))
			}
		}
		var want []json.RawMessage
		if json.Unmarshal(data, &want) != nil {
			return
		}
		if err != nil || len(spans) != len(want) {
			t.Fatalf("%d spans, %v; the array has %d elements", len(spans), err, len(want))
		}
		for i, s := range spans {
			if got := bytes.TrimSpace(data[s.Offset : s.Offset+s.Length]); !bytes.Equal(got, bytes.TrimSpace(want[i])) {
				t.Fatalf("element %d is %q, want %q", i, got, want[i])
			}
		}
	})
}

func FuzzParseJSONRecord(f *testing.F) {
	for _, seed := range []string{`{"image":"a","conversations":[{"from":"human","value":"q A. x B. y"},{"from":"gpt","value":"A"}]}`,
		`{"question":"q","gt_answer":"x","option_A":1,"option_B":null}`, `{"image":[1]}`, `{"caption":"c"}`, `null`, `[]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parseJSONRecord(data)
		if err != nil {
			return
		}
		question, answer, caption, err := rec.split()
		if err != nil || caption {
			return
		}
		got := classify(question, answer, rec.QuestionType, "")
		if got.kind == "" || got.question == "" || got.gold == "" {
			t.Fatalf("classify(%q, %q) = %+v", question, answer, got)
		}
	})
}

func FuzzRows(f *testing.F) {
	for _, seed := range []string{"index\timage\tquestion\tA\tB\tanswer\n0\tx\tq\ta\tb\tA\n", "a,base64\n\"x\ny\",z\n", "a\n\"", "\n\n", "a,b\n1,2,3\n", "q\"u,b\n\"\"\"\n"} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, tabs bool) {
		comma := ','
		if tabs {
			comma = '\t'
		}
		var rows [][]string
		layout, spans, err := scanCSV(bytes.NewReader(data), comma, func(_ int, _ csvLayout, row []string) {
			rows = append(rows, append([]string(nil), row...))
		})
		if err != nil {
			return
		}
		for i, s := range spans {
			row, err := layout.row(data[s.Offset : s.Offset+s.Length])
			if err != nil {
				if len(rows[i]) <= len(layout.names) {
					t.Fatalf("row %d reads as %q in the scan and not alone: %v", i, rows[i], err)
				}
				continue
			}
			for name, k := range layout.columns {
				if k < len(rows[i]) && row[name] != rows[i][k] {
					t.Fatalf("row %d, column %q: %q alone, %q in the scan", i, name, row[name], rows[i][k])
				}
			}
			if _, err := rowRecord(row); err != nil {
				continue
			}
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(indexMagic + `{"records":1,"size":9}` + "\n" + strings.Repeat("\x00", 16)))
	f.Add([]byte(indexMagic + `{"records":-1}` + "\n"))
	f.Add([]byte(indexMagic + `{"records":1,"size":1,"bad":[{"record":5}]}` + "\n" + strings.Repeat("\x01", 16)))
	f.Fuzz(func(t *testing.T, data []byte) {
		ix, err := parseIndex(data)
		if err != nil {
			return
		}
		for i, s := range ix.spans {
			if s.Offset < 0 || s.Length < 0 || s.Offset+s.Length > ix.Size {
				t.Fatalf("span %d is %v in a file of %d", i, s, ix.Size)
			}
		}
	})
}

func FuzzInspect(f *testing.F) {
	f.Add(pngOf(f, 1))
	f.Add([]byte("\xff\xd8\xff"))
	f.Add([]byte("RIFF\xff\xff\xff\xffWEBPVP8 "))
	f.Add([]byte("BM"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if media, err := inspect(data, Limits{}.withDefaults()); (err == nil) == (media == "") {
			t.Fatalf("inspect = %q, %v", media, err)
		}
	})
}

// What a scan keeps is a span per record, however long the records are.
func TestIndexMemoryIsPerRecord(t *testing.T) {
	held := func(records, size int) float64 {
		text := "[" + strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"a":%q},`, strings.Repeat("x", size)), records), ",") + "]"
		reader := strings.NewReader(text)
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		spans, err := scanArray(reader)
		if err != nil || len(spans) != records {
			t.Fatalf("%d spans, %v", len(spans), err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(spans)
		runtime.KeepAlive(text)
		return (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / float64(records)
	}
	short, long := held(50_000, 10), held(50_000, 400)
	if short > 64 || long > 64 {
		t.Errorf("a record costs %.0f bytes when short and %.0f when long, want at most 64", short, long)
	}
}
