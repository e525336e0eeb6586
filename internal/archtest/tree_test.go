package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// source is one parsed Go file of the tree.
type source struct {
	path  string // relative to the root, with slashes
	pkg   string // folder of the package, relative to the root
	test  bool
	lines int
	file  *ast.File
	set   *token.FileSet
}

// root is the folder that holds go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatalf("no go.mod at %s: %v", dir, err)
	}
	return dir
}

// sources parses every Go file of the tree.
func sources(t *testing.T) []source {
	t.Helper()
	top := root(t)
	var all []source
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			name := entry.Name()
			if path != top && (strings.HasPrefix(name, ".") || name == "testdata" || name == "runs" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, data, parser.ParseComments)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		relative = filepath.ToSlash(relative)
		all = append(all, source{
			path: relative, pkg: filepath.ToSlash(filepath.Dir(relative)), test: strings.HasSuffix(path, "_test.go"),
			lines: strings.Count(string(data), "\n"), file: file, set: set,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("found only %d Go files below %s", len(all), top)
	}
	return all
}

// at renders a position as file:line.
func (s source) at(node ast.Node) string {
	position := s.set.Position(node.Pos())
	return s.path + ":" + itoa(position.Line)
}

// span is the number of lines from the first to the last of node.
func (s source) span(node ast.Node) int {
	return s.set.Position(node.End()).Line - s.set.Position(node.Pos()).Line + 1
}
