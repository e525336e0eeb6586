package archtest

import (
	"go/ast"
	"strings"
	"testing"
)

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	documented := map[string]string{}
	for _, s := range sources(t) {
		if _, seen := documented[s.pkg]; !seen {
			documented[s.pkg] = ""
		}
		if !s.test && s.file.Doc != nil {
			documented[s.pkg] = s.file.Doc.Text()
		}
	}
	for pkg, text := range documented {
		if len(strings.Fields(text)) < 15 {
			t.Errorf("package %s has no doc comment that says what it is for and what it will not do", pkg)
		}
	}
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, decl := range s.file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Name.IsExported() && exportedReceiver(decl) && decl.Doc == nil {
					t.Errorf("%s: %s is exported and not documented", s.at(decl), decl.Name.Name)
				}
			case *ast.GenDecl:
				checkGroup(t, s, decl)
			}
		}
	}
}

// exportedReceiver says whether a method can be seen from outside.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	receiver := f.Recv.List[0].Type
	if star, ok := receiver.(*ast.StarExpr); ok {
		receiver = star.X
	}
	if index, ok := receiver.(*ast.IndexExpr); ok {
		receiver = index.X
	}
	name, ok := receiver.(*ast.Ident)
	return ok && name.IsExported()
}

// checkGroup wants a comment at each exported name, beside it, or at its group.
func checkGroup(t *testing.T, s source, decl *ast.GenDecl) {
	t.Helper()
	for _, spec := range decl.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if spec.Name.IsExported() && decl.Doc == nil && spec.Doc == nil {
				t.Errorf("%s: type %s is exported and not documented", s.at(spec), spec.Name.Name)
			}
		case *ast.ValueSpec:
			if spec.Names[0].IsExported() && decl.Doc == nil && spec.Doc == nil && spec.Comment == nil {
				t.Errorf("%s: %s is exported and not documented", s.at(spec), spec.Names[0].Name)
			}
		}
	}
}
