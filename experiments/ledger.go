package experiments

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/parquet-go/parquet-go"
)

// PutLedger makes the ledger of a step durable: a row a trace, from column name
// to string, bool, int64, float64 or []string; an absent key is null. arrays
// holds per-token values of all rows one after the other, in row order, and
// "offsets" with one more element than there are rows; they go to
// rollouts/scores-NNNNNN.safetensors. Each of the two files appears whole or
// not at all, the ledger last. A repeated step replaces both.
func (r *Run) PutLedger(ctx context.Context, step int, rows []map[string]any, arrays map[string][]float32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	columns, err := columnsOf(rows)
	if err != nil {
		return fmt.Errorf("ledger of step %d: %w", step, err)
	}
	if err := checkArrays(len(rows), arrays); err != nil {
		return fmt.Errorf("ledger of step %d: %w", step, err)
	}
	if len(arrays) > 0 {
		if err := r.putScores(step, arrays); err != nil {
			return fmt.Errorf("ledger of step %d: %w", step, err)
		}
	}
	return r.disk.write(r.ledgerPath(step), func(w io.Writer) error { return writeParquet(w, columns, rows) })
}

func (r *Run) ledgerPath(step int) string {
	return filepath.Join(r.dir, "ledger", stepName(step)+".parquet")
}

// columnsOf returns the fixed columns and those that the rows add, and reports
// every value that does not fit its column.
func columnsOf(rows []map[string]any) (map[string]kind, error) {
	columns := make(map[string]kind, len(fixedColumns))
	for name, k := range fixedColumns {
		columns[name] = k
	}
	var problems []error
	for i, row := range rows {
		for _, name := range slices.Sorted(keys(row)) {
			k, ok := kindOf(row[name])
			if !ok {
				problems = append(problems, fmt.Errorf("row %d column %s is a %T", i, name, row[name]))
				continue
			}
			want, known := columns[name]
			if !known {
				columns[name] = k
			} else if k != want {
				problems = append(problems, fmt.Errorf("row %d column %s is a %s, want %s", i, name, kindNames[k], kindNames[want]))
			}
		}
	}
	return columns, errors.Join(problems...)
}

func keys(row map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range row {
			if !yield(name) {
				return
			}
		}
	}
}

// checkArrays says whether the offsets and the values fit the rows.
func checkArrays(rows int, arrays map[string][]float32) error {
	if len(arrays) == 0 {
		return nil
	}
	offsets := arrays["offsets"]
	if len(offsets) != rows+1 || offsets[0] != 0 {
		return fmt.Errorf("%d offsets for %d rows", len(offsets), rows)
	}
	if !slices.IsSorted(offsets) {
		return errors.New("offsets that fall")
	}
	for _, at := range offsets {
		// Beyond 2^24 a float32 skips whole numbers.
		if at != float32(int64(at)) || at > 1<<24 {
			return fmt.Errorf("offset %g, want a whole number of at most %d", at, 1<<24)
		}
	}
	for name, values := range arrays {
		if name != "offsets" && float32(len(values)) != offsets[rows] {
			return fmt.Errorf("%d values of %s, offsets end at %g", len(values), name, offsets[rows])
		}
	}
	return nil
}

// schemaOf builds the schema: every column nullable, strings as UTF-8, lists as
// three-level lists, all compressed by zstd, in order of name.
func schemaOf(columns map[string]kind) *parquet.Schema {
	group := parquet.Group{}
	for name, k := range columns {
		var node parquet.Node
		switch k {
		case kindString:
			node = parquet.String()
		case kindBool:
			node = parquet.Leaf(parquet.BooleanType)
		case kindInt:
			node = parquet.Int(64)
		case kindFloat:
			node = parquet.Leaf(parquet.DoubleType)
		case kindStrings:
			node = parquet.List(parquet.Compressed(parquet.String(), &parquet.Zstd))
		}
		if k != kindStrings {
			node = parquet.Compressed(node, &parquet.Zstd)
		}
		group[name] = parquet.Optional(node)
	}
	return parquet.NewSchema("ledger", group)
}

// listPath is where the elements of a list column lie.
func listPath(name string) []string { return []string{name, "list", "element"} }

// writeParquet writes rows as one file.
func writeParquet(w io.Writer, columns map[string]kind, rows []map[string]any) error {
	schema := schemaOf(columns)
	names := make([]string, 0, len(columns))
	for name := range columns {
		names = append(names, name)
	}
	slices.Sort(names)
	out := parquet.NewWriter(w, schema, parquet.CreatedBy("uadt-train", "", ""))
	for _, row := range rows {
		var values parquet.Row
		for _, name := range names {
			path := []string{name}
			if columns[name] == kindStrings {
				path = listPath(name)
			}
			leaf, ok := schema.Lookup(path...)
			if !ok {
				return fmt.Errorf("ledger column %s is not in the schema", name)
			}
			values = appendValues(values, row[name], leaf)
		}
		if _, err := out.WriteRows([]parquet.Row{values}); err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}

// appendValues adds the cell of one column with its repetition and definition
// levels: 0 is null; for lists 1 is empty and 2 an element.
func appendValues(row parquet.Row, value any, leaf parquet.LeafColumn) parquet.Row {
	at := leaf.ColumnIndex
	if value == nil {
		return append(row, parquet.NullValue().Level(0, 0, at))
	}
	list, isList := value.([]string)
	if !isList {
		return append(row, parquet.ValueOf(value).Level(0, 1, at))
	}
	if len(list) == 0 {
		return append(row, parquet.NullValue().Level(0, 1, at))
	}
	for i, text := range list {
		repetition := 0
		if i > 0 {
			repetition = 1
		}
		row = append(row, parquet.ValueOf(text).Level(repetition, 2, at))
	}
	return row
}
