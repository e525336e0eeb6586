package experiments

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/parquet-go/parquet-go"
)

// ReadLedger reads the ledger file at path, of any run directory: a map a row,
// from column name to string, bool, int64, float64 or []string; a null is an
// absent key.
func ReadLedger(path string) ([]map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	rows, err := decodeLedger(data)
	if err != nil {
		return nil, fmt.Errorf("ledger %s: %w", path, err)
	}
	return rows, nil
}

// decodeLedger reads a ledger from memory. The library panics on some damaged
// files; that becomes an error here.
func decodeLedger(data []byte) (rows []map[string]any, err error) {
	defer func() {
		if p := recover(); p != nil {
			rows, err = nil, fmt.Errorf("damaged parquet file: %v", p)
		}
	}()
	file, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	leaves, err := leavesOf(file.Schema())
	if err != nil {
		return nil, err
	}
	for _, group := range file.RowGroups() {
		reader := group.Rows()
		more, err := readRows(reader, leaves)
		if err := errors.Join(err, reader.Close()); err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// leaf is one column of a file by its index.
type leaf struct {
	name string
	kind kind
}

// leavesOf maps the columns of a schema to the kinds that a ledger has.
func leavesOf(schema *parquet.Schema) ([]leaf, error) {
	var out []leaf
	for _, path := range schema.Columns() {
		column, ok := schema.Lookup(path...)
		if !ok {
			return nil, fmt.Errorf("column %v is not in its own schema", path)
		}
		l := leaf{name: path[0]}
		list := len(path) == 3 && slices.Equal(path, listPath(path[0]))
		switch kind := column.Node.Type().Kind(); {
		case list && kind == parquet.ByteArray:
			l.kind = kindStrings
		case len(path) != 1:
			return nil, fmt.Errorf("column %v is nested", path)
		case kind == parquet.ByteArray:
			l.kind = kindString
		case kind == parquet.Boolean:
			l.kind = kindBool
		case kind == parquet.Int64:
			l.kind = kindInt
		case kind == parquet.Double:
			l.kind = kindFloat
		default:
			return nil, fmt.Errorf("column %s is of type %s", l.name, kind)
		}
		out = append(out, l)
	}
	return out, nil
}

// readRows reads all rows of one row group.
func readRows(reader parquet.Rows, leaves []leaf) ([]map[string]any, error) {
	var out []map[string]any
	buffer := make([]parquet.Row, 64)
	for {
		n, err := reader.ReadRows(buffer)
		for _, values := range buffer[:n] {
			row := map[string]any{}
			for _, v := range values {
				if v.Column() < 0 || v.Column() >= len(leaves) {
					return nil, fmt.Errorf("value of column %d of %d", v.Column(), len(leaves))
				}
				addCell(row, leaves[v.Column()], v)
			}
			out = append(out, row)
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, io.ErrNoProgress
		}
	}
}

// addCell adds one value to its row.
func addCell(row map[string]any, l leaf, v parquet.Value) {
	if l.kind == kindStrings {
		if v.DefinitionLevel() == 0 {
			return
		}
		list, ok := row[l.name].([]string)
		if !ok {
			list = []string{}
		}
		if !v.IsNull() {
			list = append(list, string(v.ByteArray()))
		}
		row[l.name] = list
		return
	}
	if v.IsNull() {
		return
	}
	switch l.kind {
	case kindString:
		row[l.name] = string(v.ByteArray())
	case kindBool:
		row[l.name] = v.Boolean()
	case kindInt:
		row[l.name] = v.Int64()
	case kindFloat:
		row[l.name] = v.Double()
	}
}
