package server

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/enforcement"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

// enforced answers which proxies have acknowledged a policy (?kind=AuthorizationPolicy&policy=NAMESPACE/NAME), by what all Pilots know.
func (p *Pilot) enforced(r *http.Request) (any, error) {
	name := r.URL.Query().Get("policy")
	namespace, _, both := strings.Cut(name, "/")
	kind := registry.KindOfObject(r.URL.Query().Get("kind"))
	if kind == nil || !kind.IsCounted() || !both {
		return nil, errors.New("ask for ?kind=AuthorizationPolicy&policy=NAMESPACE/NAME, or another kind of policies")
	}
	n := p.census.Count(r.Context(), []registry.PolicyRef{{Kind: kind, ID: name}}, enforcement.MaxNames)[0]
	if n.Generation == 0 {
		return nil, fmt.Errorf("this Pilot knows no %s %s", kind.Resource().Kind, name)
	}
	out := operatorv1.Enforcement{Kind: kind.Resource().Kind, Namespace: namespace, Name: strings.TrimPrefix(name, namespace+"/"), Generation: n.Generation,
		Proxies: n.Proxies, Enforced: n.Taken, Lagging: []operatorv1.Laggard{}, Unsettled: n.Unsettled}
	for _, l := range n.Lagging {
		out.Lagging = append(out.Lagging, operatorv1.Laggard{Proxy: l.Proxy, Reason: l.Reason})
	}
	return out, nil
}
