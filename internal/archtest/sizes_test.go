package archtest

import (
	"go/ast"
	"slices"
	"testing"
)

func TestFilesStaySmall(t *testing.T) {
	var lines []int
	for _, s := range sources(t) {
		if s.lines > maxFileLines {
			t.Errorf("%s has %d lines, at most %d are allowed", s.path, s.lines, maxFileLines)
		}
		if !s.test {
			lines = append(lines, s.lines)
		}
	}
	slices.Sort(lines)
	if median := lines[len(lines)/2]; median > maxMedianFileLines {
		t.Errorf("the median file has %d lines, at most %d are allowed", median, maxMedianFileLines)
	}
}

func TestFunctionsStaySmall(t *testing.T) {
	for _, s := range sources(t) {
		for _, decl := range s.file.Decls {
			function, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.span(function); n > maxFunctionLines {
				t.Errorf("%s: %s has %d lines, at most %d are allowed", s.at(function), function.Name.Name, n, maxFunctionLines)
			}
			// A function without a body is assembly, whose arguments are its registers.
			if n := function.Type.Params.NumFields(); n > maxParameters && function.Body != nil {
				t.Errorf("%s: %s has %d parameters, at most %d are allowed", s.at(function), function.Name.Name, n, maxParameters)
			}
		}
	}
}

func TestInterfacesStaySmall(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(node ast.Node) bool {
			spec, ok := node.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if iface, ok := spec.Type.(*ast.InterfaceType); ok && iface.Methods.NumFields() > maxInterfaceMethods {
				t.Errorf("%s: interface %s has %d methods, at most %d are allowed", s.at(spec), spec.Name.Name, iface.Methods.NumFields(), maxInterfaceMethods)
			}
			return true
		})
	}
}
