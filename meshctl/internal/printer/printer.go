// Package printer is the one way from meshctl to a terminal. What is shown comes from a cluster, and much of it was chosen by
// strangers: names in certificates, paths of requests, words of errors. Nothing of it moves the cursor, breaks a line or turns
// the direction of writing, and an output that cannot be written fails the command.
package printer

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	sigsyaml "sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

// Printer writes for people and, as JSON or YAML, for programs. It is for one goroutine.
type Printer struct {
	w   io.Writer
	err error
}

// New returns a printer to w.
func New(w io.Writer) *Printer { return &Printer{w: w} }

// Err returns why something could not be written, if so. Nothing is written after that.
func (p *Printer) Err() error {
	if p.err == nil {
		return nil
	}
	return fmt.Errorf("writing the output: %w", p.err)
}

func (p *Printer) raw(s string) {
	if p.err == nil {
		_, p.err = io.WriteString(p.w, s)
	}
}

// Line writes a line of meshctl's own words. Strings, errors and what has a String method among the arguments are quoted
// where that is necessary.
func (p *Printer) Line(format string, args ...any) { p.Begin(format+"\n", args...) }

// Begin is Line without the end of the line, for what follows later or is answered there.
func (p *Printer) Begin(format string, args ...any) {
	quoted := make([]any, len(args))
	for i, arg := range args {
		switch v := arg.(type) {
		case string:
			quoted[i] = printable.Text(v)
		case error:
			quoted[i] = printable.Text(v.Error())
		case fmt.Stringer:
			quoted[i] = printable.Text(v.String())
		case int, int64, uint64, float64, bool:
			quoted[i] = v
		default:
			quoted[i] = printable.Text(fmt.Sprint(v))
		}
	}
	p.raw(fmt.Sprintf(format, quoted...))
}

// Failure writes the text of an error, whose parts may be on lines of their own: those after the first are indented, so that none looks
// like a line of meshctl's.
func (p *Printer) Failure(text string) {
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if i == 0 {
			p.Line("meshctl: %s", line)
		} else {
			p.Line("  %s", line)
		}
	}
}

// Table writes rows in columns, as wide as their widest cells, when it is flushed.
type Table struct {
	p *Printer
	w *tabwriter.Writer
}

// Table begins a table. Its header may be empty.
func (p *Printer) Table(header ...string) *Table {
	t := &Table{p: p, w: tabwriter.NewWriter(sink{p}, 6, 4, 3, ' ', 0)}
	if len(header) > 0 {
		t.Row(header...)
	}
	return t
}

// Row adds a row.
func (t *Table) Row(cells ...string) {
	quoted := make([]string, len(cells))
	for i, c := range cells {
		quoted[i] = printable.Text(c)
	}
	_, _ = io.WriteString(t.w, strings.Join(quoted, "\t")+"\n") // the printer keeps the error
}

// Flush writes the table.
func (t *Table) Flush() { _ = t.w.Flush() } // the printer keeps the error

// Columns writes a row at once, in columns of fixed widths, for tables of which more is to come. The last column has no
// width.
func (p *Printer) Columns(widths []int, cells ...string) {
	var b strings.Builder
	for i, c := range cells {
		c = printable.Text(c)
		b.WriteString(c)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(c))+2))
		}
	}
	p.raw(b.String() + "\n")
}

// JSON writes a JSON text as it is, but for characters without a shape of their own, which become escapes.
func (p *Printer) JSON(text []byte) {
	p.raw(strings.TrimRight(string(printable.JSON(text)), "\n") + "\n")
}

// Value writes v in a format that users choose: table, json or yaml. Table is called for the first.
func (p *Printer) Value(format string, v any, table func(*Printer)) error {
	switch format {
	case "table":
		table(p)
	case "json":
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		p.JSON(text)
	case "yaml":
		return p.YAML(v)
	default:
		return fmt.Errorf("--output %s: use table, json or yaml", format)
	}
	return p.Err()
}

// YAML writes a value as YAML. One that holds characters without a shape of their own is written as JSON, which is YAML too
// and has escapes for all of them.
func (p *Printer) YAML(v any) error {
	text, err := sigsyaml.Marshal(v)
	if err != nil || !printable.Is(strings.ReplaceAll(string(text), "\n", "")) {
		return p.Value("json", v, nil)
	}
	p.raw(string(text))
	return p.Err()
}

// Plain is an io.Writer for what is meshctl's own text, such as its help.
func (p *Printer) Plain() io.Writer { return sink{p} }

type sink struct{ p *Printer }

// Write implements io.Writer.
func (s sink) Write(b []byte) (int, error) {
	s.p.raw(string(b))
	return len(b), s.p.err
}
