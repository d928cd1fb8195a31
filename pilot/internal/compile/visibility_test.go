package compile_test

import (
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

func TestExportToSaysWhichNamespacesKnowAService(t *testing.T) {
	namespaces := []string{"shop", "bank", "root"} // the Service is of shop
	for annotation, want := range map[string]string{
		"": "shop bank root", "*": "shop bank root", "~, *": "shop bank root", "bank,*": "shop bank root",
		".": "shop", "shop": "shop", " . ,bank": "shop bank", "bank , root": "bank root", "bank": "bank",
		"~": "", "~,.,bank": "", ",": "", " ": "", "*.": "", "ban*": "", "bank root": "", "BANK": "", "./bank": "",
	} {
		made, err := registry.Services.Decode(&core.Service{ObjectMeta: meta.ObjectMeta{
			Namespace: "shop", Name: "web", Annotations: map[string]string{istiocompat.ExportToAnnotation: annotation}}}, authz.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(slices.Clone(namespaces), func(ns string) bool { return !compile.Exported(made, ns) })
		if strings.Join(got, " ") != want {
			t.Errorf("with %q it is known in %v, want %s", annotation, got, want)
		}
	}
	if !compile.Exported(&registry.Service{Namespace: "shop", Name: "web"}, "bank") {
		t.Error("without the annotation it is not known to all")
	}
}
