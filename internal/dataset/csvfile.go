package dataset

import (
	"bufio"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"strings"
)

// csvLayout is the header of a CSV or TSV file.
type csvLayout struct {
	comma   rune
	columns map[string]int // lower-case name -> position
	names   []string
}

// byteOrderMark is what some editors put before UTF-8.
const byteOrderMark = "\ufeff"

// newCSVReader reads rows with quoting relaxed: files in the wild have bare
// quotes in text.
func newCSVReader(r io.Reader, comma rune) *csv.Reader {
	reader := csv.NewReader(r)
	reader.Comma = comma
	reader.LazyQuotes = true
	reader.FieldsPerRecord = -1
	return reader
}

// scanCSV returns the header and the span of each row after it. visit, when
// not nil, sees every row; it may not keep the slice.
func scanCSV(r io.Reader, comma rune, visit func(i int, layout csvLayout, row []string)) (csvLayout, []span, error) {
	// Before a quoted name the mark would hide the quote.
	buffered, skipped := bufio.NewReader(r), int64(0)
	if head, err := buffered.Peek(len(byteOrderMark)); err == nil && string(head) == byteOrderMark {
		n, err := buffered.Discard(len(byteOrderMark))
		if err != nil {
			return csvLayout{}, nil, err
		}
		skipped = int64(n)
	}
	reader := newCSVReader(buffered, comma)
	reader.ReuseRecord = true
	header, err := reader.Read()
	if err == io.EOF {
		return csvLayout{}, nil, fmt.Errorf("%w: no header line", ErrFormat)
	}
	if err != nil {
		return csvLayout{}, nil, fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	layout := csvLayout{comma: comma, columns: map[string]int{}}
	for i, name := range header {
		name = strings.TrimSpace(name)
		layout.names = append(layout.names, name)
		layout.columns[strings.ToLower(name)] = i
	}
	var spans []span
	for {
		start := skipped + reader.InputOffset()
		row, err := reader.Read()
		if err == io.EOF {
			return layout, spans, nil
		}
		if err != nil {
			return csvLayout{}, nil, fmt.Errorf("%w: row %d, from byte %d: %w", ErrFormat, len(spans), start, err)
		}
		if visit != nil {
			visit(len(spans), layout, row)
		}
		spans = append(spans, span{start, skipped + reader.InputOffset() - start})
	}
}

// row parses one row and returns it by lower-case column name.
func (l csvLayout) row(data []byte) (map[string]string, error) {
	fields, err := newCSVReader(strings.NewReader(string(data)), l.comma).Read()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if len(fields) > len(l.names) {
		return nil, fmt.Errorf("%w: %d fields, the header has %d", ErrFormat, len(fields), len(l.names))
	}
	row := make(map[string]string, len(fields))
	for name, i := range l.columns {
		if i < len(fields) {
			row[name] = fields[i]
		}
	}
	return row, nil
}

// keyed is a CSV of base64 images that records refer to by key: the base64
// column and, as key, the first of the columns image, image_path, image_id,
// id, key, name or filename that is there, else the first other column.
type keyed struct {
	file   *os.File
	layout csvLayout
	spans  map[string]span
}

// openKeyed indexes the file. The caller closes it.
func openKeyed(path string) (*keyed, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image file: %w", err)
	}
	k := &keyed{file: file, spans: map[string]span{}}
	var keys []string
	layout, spans, err := scanCSV(file, commaOf(path), func(_ int, l csvLayout, row []string) {
		keys = append(keys, strings.Clone(cell(row, keyColumn(l))))
	})
	if err == nil && keyColumn(layout) < 0 {
		err = fmt.Errorf("%w: columns %q, want base64 and a key", ErrFormat, layout.names)
	}
	if err != nil {
		return nil, fmt.Errorf("image file %s: %w", path, closing(file, err))
	}
	k.layout = layout
	for i, key := range keys {
		if _, ok := k.spans[key]; ok {
			return nil, fmt.Errorf("image file %s: %w", path,
				closing(file, fmt.Errorf("%w: row %d repeats key %q", ErrFormat, i, key)))
		}
		k.spans[key] = spans[i]
	}
	return k, nil
}

// get returns the base64 cell of key.
func (k *keyed) get(key string) (cell string, ok bool, err error) {
	at, ok := k.spans[key]
	if !ok {
		return "", false, nil
	}
	data, err := readSpan(k.file, at)
	if err != nil {
		return "", false, err
	}
	row, err := k.layout.row(data)
	if err != nil {
		return "", false, fmt.Errorf("image key %q: %w", key, err)
	}
	return row["base64"], true, nil
}

// keyColumn is the position of the key, -1 when the file has none or no base64.
func keyColumn(l csvLayout) int {
	base, ok := l.columns["base64"]
	if !ok {
		return -1
	}
	for _, name := range []string{"image", "image_path", "image_id", "id", "key", "name", "filename"} {
		if i, ok := l.columns[name]; ok {
			return i
		}
	}
	for i := range l.names {
		if i != base {
			return i
		}
	}
	return -1
}

func cell(row []string, i int) string {
	if i < 0 || i >= len(row) {
		return ""
	}
	return row[i]
}

func commaOf(path string) rune {
	if strings.HasSuffix(strings.ToLower(path), ".tsv") {
		return '\t'
	}
	return ','
}
