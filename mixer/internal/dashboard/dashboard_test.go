package dashboard

import (
	"regexp"
	"strings"
	"testing"
)

// Every text that the page shows goes through one function, which quotes what strangers chose; nothing is set as markup.
func TestThePageQuotesWhatStrangersChose(t *testing.T) {
	content, err := assets.ReadFile("assets/app.js")
	if err != nil {
		t.Fatal(err)
	}
	code := string(content)
	for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("} {
		if strings.Contains(code, bad) {
			t.Errorf("the page uses %s", bad)
		}
	}
	cells := regexp.MustCompile(`td\.textContent = ([^;]*);`).FindAllStringSubmatch(code, -1)
	if len(cells) == 0 {
		t.Fatal("no cells")
	}
	for _, c := range cells {
		if c[1] != "visible(text)" && !strings.HasPrefix(c[1], `"`) {
			t.Errorf("a cell shows %s", c[1])
		}
	}
}
