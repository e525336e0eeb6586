package experiments

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/parquet-go/parquet-go"
	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// sampleRows are two rows as a coordinator writes them.
func sampleRows() ([]map[string]any, map[string][]float32) {
	rows := []map[string]any{
		{"run": "one", "incarnation": int64(3), "step": int64(7), "job": "rl-0-0", "trace": int64(0), "missing": false, "correct": true,
			"reward": 1.1, "reward/format": 0.1, "entropy": 0.25, "advantage": 0.9, "advantage_shaped": 1.2, "advantage_shaped/c2": 1.3,
			"images": []string{"aa", "bb"}, "text": "<think>\n微\x00</think>", "seed": int64(math.MaxInt64), "rule": "c1"},
		{"run": "one", "step": int64(7), "job": "rl-0-0", "trace": int64(1), "missing": true, "correct": false, "images": []string{}, "text": ""},
	}
	arrays := map[string][]float32{"offsets": {0, 2, 3}, "entropy": {0.1, 0.4, 0.5}, "advantages": {1.2, 1.2, 0}}
	return rows, arrays
}

func TestLedgerComesBackAsItWas(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	rows, arrays := sampleRows()
	if err := r.PutLedger(context.Background(), 7, rows, arrays); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLedger(r.ledgerPath(7))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, rows) {
		t.Errorf("rows\n%v, want\n%v", got, rows)
	}
	scores, err := safetensors.ReadFile(r.Dir() + "/rollouts/scores-000007.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range arrays {
		if values, err := scores.Tensors[name].Float32(); err != nil || !reflect.DeepEqual(values, want) {
			t.Errorf("%s: %v (%v), want %v", name, values, err, want)
		}
	}
	noLeftovers(t, r.Dir())
}

// Every file of a run has the fixed columns with one type each, so that they
// open together, and strings are text to other readers.
func TestLedgerSchemaIsFixed(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	rows, _ := sampleRows()
	var schemas []string
	for step, rows := range [][]map[string]any{rows[:1], rows[1:], {}} {
		offsets := map[string][]float32{}
		if len(rows) > 0 {
			offsets = map[string][]float32{"offsets": {0, 0}}
		}
		if err := r.PutLedger(context.Background(), step, rows, offsets); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(r.ledgerPath(step))
		if err != nil {
			t.Fatal(err)
		}
		file, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		var fixed []string
		for _, path := range file.Schema().Columns() {
			if _, ok := fixedColumns[path[0]]; ok {
				leaf, _ := file.Schema().Lookup(path...)
				fixed = append(fixed, fmt.Sprint(path, leaf.Node.Type(), leaf.MaxDefinitionLevel))
			}
		}
		if len(fixed) != len(fixedColumns) {
			t.Errorf("step %d has %d of %d fixed columns", step, len(fixed), len(fixedColumns))
		}
		schemas = append(schemas, strings.Join(fixed, "\n"))
	}
	if schemas[0] != schemas[1] || schemas[0] != schemas[2] {
		t.Errorf("schemas differ:\n%s\n\n%s\n\n%s", schemas[0], schemas[1], schemas[2])
	}
	if !strings.Contains(schemas[0], "[text] STRING") || !strings.Contains(schemas[0], "[images list element] STRING") {
		t.Errorf("strings are not text:\n%s", schemas[0])
	}
}

// The columns that the documentation promises.
func TestLedgerHasThePromisedColumns(t *testing.T) {
	for _, name := range strings.Fields(`run incarnation stage step epoch job question type modality level split gold answer answer_reason
		finish missing correct reward group_mean group_std zero_variance entropy estimator temperature tau sigma u omega lambda gain gamma
		advantage advantage_shaped rule length prompt_tokens logprob_sum policy_sent policy_received policy_scored seed server images text`) {
		if _, ok := fixedColumns[name]; !ok {
			t.Errorf("no column %s", name)
		}
	}
}

func TestLedgerRefusesWhatDoesNotFit(t *testing.T) {
	r := mustOpen(t, spec(t.TempDir(), nil))
	put := func(rows []map[string]any, arrays map[string][]float32) error {
		return r.PutLedger(context.Background(), 1, rows, arrays)
	}
	for part, row := range map[string]map[string]any{
		"column seed is a string, want int64":        {"seed": "7"},
		"column tau is a int64, want float64":        {"tau": int64(1)},
		"column length is a int":                     {"length": 3},
		"column reward/format is a float32":          {"reward/format": float32(1)},
		"column text is a <nil>":                     {"text": nil},
		"column images is a string, want []string":   {"images": "aa"},
		"column correct is a []string, want bool":    {"correct": []string{}},
		"column missing is a float64, want bool":     {"missing": 0.0},
		"column server is a bool, want string":       {"server": true},
		"column advantage_shaped is a []float64":     {"advantage_shaped": []float64{1}},
		"column advantage is a string, want float64": {"advantage": "1"},
	} {
		if err := put([]map[string]any{row}, nil); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("want %q, got %v", part, err)
		}
	}
	if err := put([]map[string]any{{"new": "a"}, {"new": 1.0}, {"seed": 1.0}}, nil); err == nil ||
		!strings.Contains(err.Error(), "row 1 column new") || !strings.Contains(err.Error(), "row 2 column seed") {
		t.Errorf("not all problems: %v", err)
	}
	one := []map[string]any{{"run": "x"}}
	for part, arrays := range map[string]map[string][]float32{
		"0 offsets for 1 rows":    {"entropy": {1}},
		"1 offsets for 1 rows":    {"offsets": {0}},
		"offsets that fall":       {"offsets": {0, -1}},
		"offset 0.5":              {"offsets": {0, 0.5}},
		"offset 1.6777218e+07":    {"offsets": {0, 1<<24 + 2}}, // 1<<24 + 1 would be rounded to 1<<24
		"2 values of entropy":     {"offsets": {0, 1}, "entropy": {1, 2}},
		"2 offsets for 1 rows":    {"offsets": {1, 1}},
		"0 values of advantages,": {"offsets": {0, 1}, "advantages": {}},
	} {
		if err := put(one, arrays); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("want %q, got %v", part, err)
		}
	}
	if _, err := os.Stat(r.ledgerPath(1)); err == nil {
		t.Error("something was written")
	}
}

func TestLedgerOnAFullDisk(t *testing.T) {
	q := &quota{}
	r := mustOpenOn(t, spec(t.TempDir(), nil), q.disk())
	rows, arrays := sampleRows()
	if err := r.PutLedger(context.Background(), 7, rows, arrays); err != nil {
		t.Fatal(err)
	}
	before := tree(t, r.Dir())
	q.on = true
	scores, ledger := len(before["rollouts/scores-000007.safetensors"]), len(before["ledger/step-000007.parquet"])
	for _, room := range []int{0, scores - 1, scores + 4, scores + ledger - 1} {
		q.left = room
		if err := r.PutLedger(context.Background(), 7, rows, arrays); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("room for %d: %v", room, err)
		}
		sameTree(t, r.Dir(), before)
	}
}

func TestLedgerIsAFunctionOfItsRows(t *testing.T) {
	rows, _ := sampleRows()
	columns, err := columnsOf(rows)
	if err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	if err := errors.Join(writeParquet(&one, columns, rows), writeParquet(&two, columns, rows)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same rows gave two files")
	}
}

func TestLedgerOfAnyRows(t *testing.T) {
	cell := map[kind]func(t *rapid.T) any{
		kindString: func(t *rapid.T) any { return rapid.String().Draw(t, "s") },
		kindBool:   func(t *rapid.T) any { return rapid.Bool().Draw(t, "b") },
		kindInt:    func(t *rapid.T) any { return rapid.Int64().Draw(t, "i") },
		kindFloat:  func(t *rapid.T) any { return rapid.Float64().Draw(t, "f") },
		kindStrings: func(t *rapid.T) any {
			return rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "l")
		},
	}
	names := []string{"run", "correct", "seed", "tau", "images", "text", "missing"}
	rapid.Check(t, func(t *rapid.T) {
		var rows []map[string]any
		for range rapid.IntRange(0, 80).Draw(t, "rows") { // more than one read
			row := map[string]any{}
			for _, name := range names {
				if rapid.Bool().Draw(t, "there") {
					row[name] = cell[fixedColumns[name]](t)
				}
			}
			rows = append(rows, row)
		}
		columns, err := columnsOf(rows)
		if err != nil {
			t.Fatalf("%v", err)
		}
		var out bytes.Buffer
		if err := writeParquet(&out, columns, rows); err != nil {
			t.Fatalf("write: %v", err)
		}
		got, err := decodeLedger(out.Bytes())
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		if len(got) != len(rows) || len(rows) > 0 && !reflect.DeepEqual(got, rows) {
			t.Fatalf("rows\n%v, want\n%v", got, rows)
		}
	})
}

func TestLedgerRefusesForeignFiles(t *testing.T) {
	type nested struct{ A struct{ B string } }
	type narrow struct{ A float32 }
	for name, write := range map[string]func(*bytes.Buffer) error{
		"empty":  func(*bytes.Buffer) error { return nil },
		"text":   func(b *bytes.Buffer) error { b.WriteString("PAR1 not really PAR1"); return nil },
		"nested": func(b *bytes.Buffer) error { return parquet.Write(b, []nested{{}}) },
		"narrow": func(b *bytes.Buffer) error { return parquet.Write(b, []narrow{{}}) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		if rows, err := decodeLedger(b.Bytes()); err == nil {
			t.Errorf("%s: %v", name, rows)
		}
	}
	if _, err := ReadLedger("no/such/file.parquet"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func FuzzDecodeLedger(f *testing.F) {
	rows, _ := sampleRows()
	for _, rows := range [][]map[string]any{rows, nil} {
		columns, err := columnsOf(rows)
		if err != nil {
			f.Fatal(err)
		}
		var b bytes.Buffer
		if err := writeParquet(&b, columns, rows); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte("PAR1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rows, err := decodeLedger(data) // an error or rows, never a panic
		if err == nil {
			if _, err := columnsOf(rows); err != nil && !strings.Contains(err.Error(), "want") {
				t.Fatalf("rows of unknown types: %v", err)
			}
		}
	})
}
