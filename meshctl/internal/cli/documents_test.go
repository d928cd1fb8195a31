package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
)

var (
	inline = regexp.MustCompile("`(?:bin/)?meshctl ([^`]+)`")
	fenced = regexp.MustCompile(`(?m)^(?:\$ )?(?:bin/)?meshctl ([^#\n]+)`)
	quoted = regexp.MustCompile(`"[^"]*"`)
)

// Every command line that a document shows is one that meshctl has: its commands, flags and the kinds of their values. That
// they do what the document says is shown on a real cluster, by the end-to-end tests.
func TestDocumentsShowCommandsThatThereAre(t *testing.T) {
	documents, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	documents = append(documents, "../../../README.md", "../../../ARCHITECTURE.md", "../../../CHANGELOG.md")
	seen := 0
	for _, document := range documents {
		content, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		text := string(content)
		for _, m := range append(inline.FindAllStringSubmatch(strings.ReplaceAll(text, "\n", " "), -1), fenced.FindAllStringSubmatch(text, -1)...) {
			seen++
			if err := parses(m[1]); err != nil {
				t.Errorf("%s: meshctl %s: %v", filepath.Base(document), m[1], err)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d command lines were found", seen)
	}
}

// placeholders of documents stand for values of these kinds.
var placeholders = map[string]string{"--for": "48h", "--since": "1h", "--last": "20"}

func parses(line string) error {
	line, _, _ = strings.Cut(quoted.ReplaceAllString(line, "text"), "|")
	args := strings.Fields(strings.TrimRight(line, ".,;:"))
	for i, arg := range args {
		if i > 0 && placeholders[args[i-1]] != "" {
			args[i] = placeholders[args[i-1]]
		}
		if arg == "…" || arg == "..." {
			args = args[:i]
			break
		}
	}
	root := (&app{out: printer.New(os.Stderr), notes: printer.New(os.Stderr)}).root()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if positional := cmd.Flags().Args(); !isGroup(cmd) || len(positional) > 0 {
		if isGroup(cmd) {
			return cmd.RunE(cmd, positional)
		}
		if len(positional) == 0 && (strings.Contains(cmd.Use, "POD") || strings.Contains(cmd.Use, "NAME")) {
			return nil // prose names the command without its argument
		}
		return cmd.ValidateArgs(positional)
	}
	return nil
}

// isGroup reports whether a command only holds others; prose may name it so.
func isGroup(cmd *cobra.Command) bool { return cmd.HasSubCommands() && !strings.Contains(cmd.Use, " ") }
