// Package report prints results: a table for people, JSON for programs.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Table is a Markdown table.
type Table struct {
	Columns []string
	Rows    [][]string
}

// Row adds a row.
func (t *Table) Row(cells ...string) { t.Rows = append(t.Rows, cells) }

// Write prints the table.
func (t *Table) Write(w io.Writer) error {
	rule := slices.Repeat([]string{"---"}, len(t.Columns))
	for _, row := range slices.Concat([][]string{t.Columns, rule}, t.Rows) {
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | ")); err != nil {
			return err
		}
	}
	return nil
}

// Tabular is a result that people can read.
type Tabular interface{ Table() Table }

// Write prints a result in the format, "table" or "json".
func Write(w io.Writer, format string, result Tabular) error {
	switch format {
	case "table":
		t := result.Table()
		return t.Write(w)
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(result)
	}
	return fmt.Errorf("no format %q: want table or json", format)
}

// Durations is a sample of times.
type Durations []time.Duration

// Percentile returns the nearest-rank percentile, p of 0 to 100.
func (d Durations) Percentile(p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	rank := int(float64(len(sorted))*p/100+0.999999) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}

// Millis prints a duration in milliseconds.
func Millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// Seconds prints a duration in seconds.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// MB prints bytes in millions.
func MB(bytes float64) string { return fmt.Sprintf("%.2f MB", bytes/1e6) }
