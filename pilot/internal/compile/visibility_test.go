package compile_test

import (
	"slices"
	"strings"
	"testing"
	"time"

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

func TestSidecarThatIsMostSpecialAndOldestHolds(t *testing.T) {
	web, everything := map[string]string{"app": "web"}, []registry.EgressHost{{Namespace: "*", Host: "*"}}
	sidecar := func(id string, day int, selector map[string]string, egress []registry.EgressHost) any {
		namespace, name, _ := strings.Cut(id, "/")
		return &registry.Sidecar{ID: id, Namespace: namespace, Name: name, Selector: selector, Egress: egress, Created: time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC)}
	}
	root, rootSelects := sidecar("root/all", 9, nil, everything), sidecar("root/web", 1, web, everything)
	all, older, alike := sidecar("shop/all", 5, nil, everything), sidecar("shop/old", 4, nil, everything), sidecar("shop/zzz", 4, nil, everything)
	selects, selectsOlder := sidecar("shop/web", 8, web, everything), sidecar("shop/x", 7, web, everything)
	silent, silentAll := sidecar("shop/silent", 1, web, nil), sidecar("shop/silentall", 1, nil, nil)
	elsewhere := sidecar("bank/all", 1, nil, everything)
	shut := sidecar("shop/shut", 9, nil, []registry.EgressHost{})
	for _, c := range []struct {
		namespace string
		labels    map[string]string
		sidecars  []any
		want      string
	}{
		{"shop", web, nil, ""},
		{"shop", web, []any{elsewhere, rootSelects}, ""},
		{"shop", web, []any{root, rootSelects, elsewhere}, "root/all"},
		{"root", web, []any{root, rootSelects}, "root/web"},
		{"root", nil, []any{root, rootSelects}, "root/all"},
		{"shop", web, []any{root, all}, "shop/all"},
		{"shop", web, []any{root, all, older, alike}, "shop/old"},
		{"shop", web, []any{root, older, selects}, "shop/web"},
		{"shop", web, []any{root, older, selects, selectsOlder}, "shop/x"},
		{"shop", map[string]string{"app": "other"}, []any{root, older, selects}, "shop/old"},
		{"shop", web, []any{root, older, silent}, "shop/old"},
		{"shop", web, []any{root, silent, silentAll}, "root/all"},
		{"shop", web, []any{root, shut}, "shop/shut"},
	} {
		got := ""
		if s := compile.SidecarOf(world(t, c.sidecars...), settings, c.namespace, c.labels); s != nil {
			got = s.ID
		}
		if got != c.want {
			t.Errorf("in %s with %v, of %d: %q, want %q", c.namespace, c.labels, len(c.sidecars), got, c.want)
		}
	}
}

func TestHostsOfASidecarNameServices(t *testing.T) {
	var services []*registry.Service
	for _, id := range []string{"shop/web", "shop/db", "bank/web"} {
		namespace, name, _ := strings.Cut(id, "/")
		services = append(services, &registry.Service{ID: id, Namespace: namespace, Name: name})
	}
	const all = "shop/web shop/db bank/web"
	for hosts, want := range map[string]string{ // to a workload of shop
		"./*": "shop/web shop/db", "*/*": all, "bank/*": "bank/web", "other/*": "", "~/*": "", "": "",
		"bank/* ./*": all, "*/web.shop.svc.cluster.local": "shop/web", "shop/web.shop.svc.cluster.local": "shop/web",
		"bank/web.shop.svc.cluster.local": "", "./web.bank.svc.cluster.local": "", "*/*.bank.svc.cluster.local": "bank/web",
		"*/*.svc.cluster.local": all, "*/*.web.shop.svc.cluster.local": "", "*/*.p.svc.cluster.local": "", "*/eb.shop.svc.cluster.local": "",
		"*/* ~/*": "", "*/* ~bank/*": "shop/web shop/db", "*/* ~./*": "bank/web", "~bank/* */*": "shop/web shop/db",
		"*/* ~*/web.shop.svc.cluster.local": "shop/db bank/web", "*/* ~/web.shop.svc.cluster.local": "shop/db bank/web", "~bank/*": "",
	} {
		sidecar := &registry.Sidecar{Namespace: "root", Egress: []registry.EgressHost{}}
		for _, text := range strings.Fields(hosts) {
			namespace, host, _ := strings.Cut(text, "/")
			sidecar.Egress = append(sidecar.Egress, registry.EgressHost{Namespace: namespace, Host: host})
		}
		var got []string
		for _, s := range services {
			if compile.Imports(sidecar, "shop", s) {
				got = append(got, s.ID)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s names %v, want %s", hosts, got, want)
		}
	}
	if !compile.Imports(nil, "shop", services[2]) || !compile.Imports(&registry.Sidecar{}, "shop", services[2]) {
		t.Error("without egress something is hidden")
	}
}
