package printer

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	sigsyaml "sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

const hostile = "spiffe://a/ns/b/sa/c\r\n19:00:00.000  allowed   forged row\x1b[2K\u202egnp\u009b31m\ttab"

// harmless reports whether all that is left are the printer's own line breaks.
func harmless(out string, lines int) bool {
	return strings.Count(out, "\n") == lines && printable.Is(strings.ReplaceAll(out, "\n", ""))
}

func TestNothingThatStrangersChoseLeavesItsPlace(t *testing.T) {
	var out bytes.Buffer
	p := New(&out)
	for name, c := range map[string]struct {
		lines int
		write func()
	}{
		"line":    {1, func() { p.Line("%s and %s of %d", hostile, errors.New(hostile), 3) }},
		"table":   {2, func() { table := p.Table("A", "B"); table.Row(hostile, "x"); table.Flush() }},
		"columns": {1, func() { p.Columns([]int{10, 10}, "x", hostile, hostile) }},
		"json":    {3, func() { _ = p.Value("json", map[string]string{"k": hostile}, nil) }},
		"yaml":    {3, func() { _ = p.Value("yaml", map[string]string{"k": hostile}, nil) }},
	} {
		out.Reset()
		c.write()
		if !harmless(out.String(), c.lines) {
			t.Errorf("%s: %q", name, out.String())
		}
	}
	out.Reset()
	p.Failure("one\nmeshctl: forged" + "\x1b[2K")
	if !harmless(out.String(), 2) || strings.Contains(out.String(), "\nmeshctl") {
		t.Errorf("failure: %q", out.String())
	}
}

func TestProgramsReadWhatWasMeant(t *testing.T) {
	var out bytes.Buffer
	p := New(&out)
	for _, s := range []string{hostile, "plain"} {
		var got map[string]string
		out.Reset()
		if err := p.Value("json", map[string]string{"k": s}, nil); err != nil || json.Unmarshal(out.Bytes(), &got) != nil || got["k"] != s {
			t.Errorf("json: %q, %v", out.String(), err)
		}
		out.Reset()
		if err := p.Value("yaml", map[string]string{"k": s}, nil); err != nil || sigsyaml.Unmarshal(out.Bytes(), &got) != nil || got["k"] != s {
			t.Errorf("yaml: %q, %v", out.String(), err)
		}
	}
	if err := p.Value("xml", 1, nil); err == nil {
		t.Error("xml")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAnOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	for name, write := range map[string]func(*Printer){
		"line": func(p *Printer) { p.Line("x") }, "columns": func(p *Printer) { p.Columns(nil, "x") }, "json": func(p *Printer) { p.JSON([]byte("1")) },
		"table": func(p *Printer) { table := p.Table("A"); table.Flush() }, "help": func(p *Printer) { _, _ = p.Plain().Write([]byte("x")) },
	} {
		p := New(full{})
		write(p)
		if p.Err() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// No other code of meshctl writes to a terminal: a new command cannot forget to quote.
func TestThereIsNoOtherPrinter(t *testing.T) {
	root := filepath.Join("..", "..")
	found := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Base(filepath.Dir(path)) == "printer" {
			return err
		}
		found++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			if name, _ := strconv.Unquote(spec.Path.Value); name == "text/tabwriter" || name == "text/template" || name == "k8s.io/cli-runtime/pkg/printers" || name == "log" {
				t.Errorf("%s imports %s", path, name)
			}
		}
		main := filepath.Base(path) == "main.go"
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, _ := s.X.(*ast.Ident)
			switch of := s.Sel.Name; {
			case x != nil && x.Name == "fmt" && (strings.HasPrefix(of, "Fprint") || strings.HasPrefix(of, "Print")),
				x != nil && x.Name == "io" && (of == "WriteString" || of == "Copy"),
				x != nil && x.Name == "os" && !main && (of == "Stdout" || of == "Stderr"),
				of == "OutOrStdout" || of == "ErrOrStderr" || of == "OutOrStderr",
				of == "NewEncoder":
				t.Errorf("%s uses %s beside the printer", path, of)
			}
			return true
		})
		return nil
	})
	if err != nil || found < 10 {
		t.Fatalf("%d files, %v", found, err)
	}
	if _, err := os.Stat(filepath.Join(root, "cmd")); err != nil {
		t.Fatal(err)
	}
}
