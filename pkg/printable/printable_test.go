package printable

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// hostile are texts that strangers chose to be read as something else.
var hostile = []string{
	"spiffe://cluster.local/ns/finance/sa/a\r\n19:00:00.000  allowed   forged row", "\x1b[2K\x1b[1A", "\x1b]0;title\x07", "a\u202egnp.exe",
	"a\u2066b\u2069", "\u009b31m", "tab\there", "\u2028line", "\u2029paragraph", "zero\u200bwidth", "\ufeffmark", "\x7f\b\b", "bad \xff\xfe bytes", "\U000e0041tag",
}

func TestNoTextLeavesItsLineOrMovesACursor(t *testing.T) {
	for _, s := range hostile {
		got := Text(s)
		if !Is(got) {
			t.Errorf("Text(%q) = %q", s, got)
		}
		if back, err := strconv.Unquote(got); err != nil || back != s {
			t.Errorf("%s does not say what it was: %q, %v", got, back, err)
		}
	}
	for _, s := range []string{"", "/accounts/42", "Grüße, 世界 → ✓", `back\slash`, "it's", "a b"} {
		if got := Text(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	if got := Text(`"a\n"`); got == `"a\n"` {
		t.Error("a text that looks quoted is not told apart from a quoted one")
	}
}

func TestJSONKeepsItsMeaning(t *testing.T) {
	for _, s := range hostile {
		raw, err := json.Marshal(map[string]string{"k": s})
		if err != nil {
			t.Fatal(err)
		}
		got := JSON(raw)
		for _, r := range string(got) {
			if !unicode.IsPrint(r) {
				t.Errorf("%q passes in %s", r, got)
			}
		}
		var before, after map[string]string
		if err := json.Unmarshal(raw, &before); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &after); err != nil || after["k"] != before["k"] {
			t.Errorf("%s reads as %q, %v", got, after["k"], err)
		}
	}
}

func TestALogLineIsOneLine(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(JSONWriter(&out), nil))
	for _, s := range hostile {
		out.Reset()
		log.Info("refused", "peer", s)
		if line := strings.TrimSuffix(out.String(), "\n"); !Is(line) {
			t.Errorf("%q", line)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := Text(s); !Is(got) {
			t.Fatalf("Text(%q) = %q", s, got)
		}
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(JSON(raw)); !Is(got) {
			t.Fatalf("JSON(%q) = %q", raw, got)
		}
	})
}
