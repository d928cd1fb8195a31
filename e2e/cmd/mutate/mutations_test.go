package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

const root = "../../.."

// Every mutation must still have its place in the source, or the run would stop at it.
func TestMutationsHaveTheirPlace(t *testing.T) {
	for _, m := range mutations {
		for _, e := range m.edits {
			content, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(content, []byte(e.old)); n != 1 {
				t.Errorf("claim %d (%s): %s has %q %d times, want once", m.claim, m.what, e.file, e.old, n)
			}
		}
	}
}

// Every mutation's test must still be there, for the same reason. Subtests are made as they run.
func TestMutationsHaveTheirTest(t *testing.T) {
	sources := map[string][]byte{}
	for _, m := range mutations {
		dir, test, ok := strings.Cut(m.test, ".")
		if !ok {
			dir, test = "e2e", m.test
		}
		test, _, _ = strings.Cut(test, "/")
		if sources[dir] == nil {
			files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				content, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				sources[dir] = append(sources[dir], content...)
			}
		}
		if !bytes.Contains(sources[dir], []byte("\nfunc "+test+"(t *testing.T)")) {
			t.Errorf("claim %d (%s): there is no test %s in %s", m.claim, m.what, test, dir)
		}
	}
}

// What is mutated must still compile, for the same reason.
func TestMutationsCompile(t *testing.T) {
	var dirs []string
	for _, m := range mutations {
		for _, e := range m.edits {
			if strings.HasSuffix(e.file, ".go") {
				dirs = append(dirs, "./"+filepath.Dir(e.file))
			}
		}
	}
	slices.Sort(dirs)
	loaded, err := packages.Load(&packages.Config{
		Dir:  root,
		Mode: packages.LoadSyntax | packages.NeedModule, // what they import is read as it was compiled
	}, slices.Compact(dirs)...)
	if err != nil {
		t.Fatal(err)
	}
	byDir := map[string]*packages.Package{}
	for _, p := range loaded {
		for _, e := range p.Errors {
			t.Fatal(e)
		}
		byDir[filepath.Dir(p.CompiledGoFiles[0])] = p
	}
	absolute, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutations {
		changed := map[string][]byte{}
		for _, e := range m.edits {
			file := filepath.Join(absolute, e.file)
			if changed[file] == nil {
				if changed[file], err = os.ReadFile(file); err != nil {
					t.Fatal(err)
				}
			}
			changed[file] = bytes.Replace(changed[file], []byte(e.old), []byte(e.new), 1)
		}
		for dir, p := range byDir {
			if err := check(p, dir, changed); err != nil {
				t.Errorf("claim %d (%s): %v", m.claim, m.what, err)
			}
		}
	}
}

// check is the compiler's view of a package some of whose files are changed.
func check(p *packages.Package, dir string, changed map[string][]byte) error {
	concerned := false
	var files []*ast.File
	for _, name := range p.CompiledGoFiles {
		var source any
		if content, ok := changed[name]; ok {
			source, concerned = content, true
		}
		file, err := parser.ParseFile(p.Fset, name, source, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	if !concerned {
		return nil
	}
	var errs []error
	config := types.Config{
		Importer: importer(p.Types.Imports()), Sizes: p.TypesSizes, GoVersion: "go" + p.Module.GoVersion,
		Error: func(err error) { errs = append(errs, err) },
	}
	_, _ = config.Check(p.PkgPath, p.Fset, files, nil)
	return errors.Join(errs...)
}

// importer finds what a package imports among what it imported before.
type importer []*types.Package

func (i importer) Import(path string) (*types.Package, error) {
	if n := slices.IndexFunc(i, func(p *types.Package) bool { return p.Path() == path }); n >= 0 {
		return i[n], nil
	}
	return nil, fmt.Errorf("package %s is not among the imports", path)
}
