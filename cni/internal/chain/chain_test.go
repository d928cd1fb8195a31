package chain

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func inputs(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := libcni.ConfFiles("testdata", []string{".conf", ".conflist"})
	if err != nil || len(files) < 7 {
		t.Fatalf("inputs: %v, %v", files, err)
	}
	out := map[string][]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out[file] = text
	}
	return out
}

// types are the plugins of a list as a runtime reads it.
func types(t *testing.T, list []byte) (out []string) {
	t.Helper()
	l, err := libcni.NetworkConfFromBytes(list)
	if err != nil {
		t.Fatalf("no runtime would take it: %v\n%s", err, list)
	}
	for _, p := range l.Plugins {
		out = append(out, p.Network.Type)
	}
	return out
}

// Configurations as they are found on nodes: the plugin comes last, once, nothing else changes by a byte, and taken out again
// leaves what was there.
func TestRealConfigurations(t *testing.T) {
	for file, text := range inputs(t) {
		list := text
		if strings.HasSuffix(file, ".conf") {
			var err error
			if list, err = FromSingle(text); err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(list, bytes.TrimSpace(text)) {
				t.Errorf("%s: its text is not in the list that is made of it:\n%s", file, list)
			}
		}
		before := types(t, list)
		with, err := With(list)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if got := types(t, with); !slices.Equal(got, append(before, "bulwark-cni")) || !Has(with) || Has(list) {
			t.Errorf("%s: plugins %v, want %v and bulwark-cni", file, got, before)
		}
		golden := strings.TrimSuffix(file, filepath.Ext(file)) + ".chained"
		if *update {
			if err := os.WriteFile(golden, with, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || !bytes.Equal(with, want) {
			t.Errorf("%s: %v, got\n%s\nwant\n%s", file, err, with, want)
		}
		if again, err := With(with); err != nil || !bytes.Equal(again, with) {
			t.Errorf("%s: twice gives %v\n%s", file, err, again)
		}
		if without, err := Without(with); err != nil || !bytes.Equal(without, list) {
			t.Errorf("%s: taken out leaves %v\n%s", file, err, without)
		}
	}
}

func TestAPluginThatIsNotAsItShouldBeIsPutRight(t *testing.T) {
	const head, tail = `{"name":"n","cniVersion":"1.0.0","plugins":[`, `]}`
	for name, c := range map[string]struct{ in, want string }{
		"of another version": {`{"type":"a"},{"type":"bulwark-cni","old":true}`, `{"type":"a"},` + entry},
		"twice":              {`{"type":"a"},` + entry + `,` + entry, `{"type":"a"},` + entry},
		"first, where it has no network to redirect": {entry + `, {"type":"a"}`, `{"type":"a"},` + entry},
		"before another that was chained later":      {`{"type":"a"},` + entry + `,{"type":"istio-cni"}`, `{"type":"a"},` + entry + `,{"type":"istio-cni"}`},
	} {
		got, err := With([]byte(head + c.in + tail))
		if err != nil || string(got) != head+c.want+tail {
			t.Errorf("%s: %v, %s", name, err, got)
		}
	}
}

func TestWhatNoRuntimeWouldTakeIsRefused(t *testing.T) {
	for _, bad := range []string{
		``, `null`, `[]`, `{`, `{"plugins":[{"type":"a"}]}`, `{"name":"n"}`, `{"name":"n","plugins":[]}`, `{"name":"n","plugins":{"type":"a"}}`,
		`{"name":"n","plugins":[{"x":1}]}`, `{"name":"n","plugins":["a"]}`, `{"name":"n","plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}`,
		`{"name":"n","plugins":[{"type":"bulwark-cni"}]}`, `{"name":"n","type":"bridge"}`, `{"name":"n","plugins":[{"type":"a"}]} x`,
		`{"name":"n","cniVersion":"9.0.0","plugins":[{"type":"a"}]}`,
	} {
		if got, err := With([]byte(bad)); err == nil {
			t.Errorf("%s becomes %s", bad, got)
		}
	}
	for _, bad := range []string{``, `{"name":"n","plugins":[{"type":"a"}]}`, `{"type":1}`, `{"name":"n","type":""}`} {
		if got, err := FromSingle([]byte(bad)); err == nil {
			t.Errorf("%s becomes %s", bad, got)
		}
	}
}

// Whatever is put in can be taken out.
func FuzzChain(f *testing.F) {
	for _, text := range []string{"flannel.conflist", "aws.conflist", "odd.conflist"} {
		content, err := os.ReadFile(filepath.Join("testdata", text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		with, err := With(list)
		if err != nil {
			return
		}
		if _, err := libcni.NetworkConfFromBytes(with); err != nil {
			t.Errorf("no runtime would take %q, which is made of %q: %v", with, list, err)
		}
		if again, err := With(with); err != nil || !bytes.Equal(again, with) {
			t.Errorf("%q becomes %q, and that %q, %v", list, with, again, err)
		}
		if without, err := Without(with); err != nil || Has(without) || !Has(list) && !bytes.Equal(without, list) {
			t.Errorf("%q becomes %q, and taken out leaves %q, %v", list, with, without, err)
		}
	})
}
