// Package printable makes text that came from outside harmless where people read it: on a terminal, in a log, in an Event,
// in a file of evidence. What somebody chose who is not trusted may hold control bytes that move a cursor, line breaks that
// forge a row, and overrides of the direction of writing that make it read as something else.
package printable

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Text returns s as it is if every character of it has a shape of its own (Unicode's letters, marks, numbers, punctuation,
// symbols, and the ASCII blank), and otherwise as a quoted string of Go, in which all others are escaped. What begins with a
// quotation mark is quoted too, so that no text looks like the quoted form of another.
func Text(s string) string {
	if !strings.HasPrefix(s, `"`) && Is(s) {
		return s
	}
	return strconv.Quote(s)
}

// Is reports whether s is valid UTF-8 and holds nothing but characters that have a shape of their own.
func Is(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// JSON returns a JSON text with the same meaning in which every character without a shape of its own is an escape of JSON.
// Encoders escape the ASCII control bytes alone, and leave those above and overrides of direction as they are. Line breaks
// between tokens stay, as they are the writer's own: within a string JSON has none. Bytes that are no UTF-8, which JSON does
// not allow, become U+FFFD.
func JSON(text []byte) []byte {
	if bytes.IndexFunc(text, hidden) < 0 && utf8.Valid(text) {
		return text
	}
	var out bytes.Buffer
	for _, r := range string(text) {
		switch {
		case !hidden(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.Bytes()
}

func hidden(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

// JSONWriter passes on what is written to it with JSON applied to each call. Each must be a whole JSON text, as those of
// slog's handler are.
func JSONWriter(w io.Writer) io.Writer { return jsonWriter{w} }

type jsonWriter struct{ w io.Writer }

// Write implements io.Writer.
func (j jsonWriter) Write(p []byte) (int, error) {
	if _, err := j.w.Write(JSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
