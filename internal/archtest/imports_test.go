package archtest

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestImportsFollowTheTable(t *testing.T) {
	for _, s := range sources(t) {
		allowed, listed := table[s.pkg]
		if !listed {
			t.Errorf("%s: package %s is not in the table", s.path, s.pkg)
			continue
		}
		for _, spec := range s.file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			checkImport(t, s, path, allowed)
		}
	}
}

func checkImport(t *testing.T, s source, path string, allowed []string) {
	t.Helper()
	if ours, ok := strings.CutPrefix(path, module); ok {
		free := s.test && ours != "cmd/uadt-train" || slices.Contains(allowed, anything)
		if !free && !slices.Contains(allowed, ours) {
			t.Errorf("%s: %s may not import %s", s.path, s.pkg, ours)
		}
		return
	}
	for prefix, packages := range owners {
		if strings.HasPrefix(path, prefix) && !s.test && !slices.Contains(packages, s.pkg) {
			t.Errorf("%s: %s may not import %s; only %s may", s.path, s.pkg, path, strings.Join(packages, ", "))
		}
	}
}

func TestEveryPackageOfTheTableExists(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sources(t) {
		seen[s.pkg] = true
	}
	for pkg := range table {
		if !seen[pkg] {
			t.Errorf("package %s is in the table but not in the tree", pkg)
		}
	}
}

func TestNoDrawersForHelpers(t *testing.T) {
	for _, s := range sources(t) {
		for _, name := range []string{"util", "utils", "common", "helpers", "misc", "shared"} {
			if s.file.Name.Name == name || strings.HasSuffix(s.pkg, "/"+name) {
				t.Errorf("%s: package %s says nothing about its subject", s.path, name)
			}
		}
	}
}
