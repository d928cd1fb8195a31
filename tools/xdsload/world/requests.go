package world

import (
	"context"
	"fmt"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

// What follows is of Sizes.Requests.

const (
	authorizer     = "authorizer" // its Service, of the first namespace, and its name in the installation
	authorizerPort = 9191
)

// PilotArgs are what Pilot has to be told beside its defaults.
func (s Sizes) PilotArgs() []string {
	if !s.Requests {
		return nil
	}
	return []string{fmt.Sprintf(`--extension-providers=[{"name":%q,"envoyExtAuthzGrpc":{"service":"%s.%s.svc.cluster.local","port":%d}}]`, authorizer, authorizer, namespaceName(0), authorizerPort)}
}

// verified is the number of workloads of which requests are verified.
func (s Sizes) verified() int { return min(s.simulated(), s.guarded()) }

func (w *World) createAuthorizer(ctx context.Context, _ int) error {
	_, err := w.kube.CoreV1().Services(namespaceName(0)).Create(ctx, &core.Service{
		ObjectMeta: named(namespaceName(0), authorizer, proxyLabel, value),
		Spec:       core.ServiceSpec{Ports: []core.ServicePort{{Name: "grpc", Port: authorizerPort}}, ClusterIP: core.ClusterIPNone},
	}, meta.CreateOptions{})
	return err
}

// createTokens says whose tokens a workload takes.
func (w *World) createTokens(ctx context.Context, workload int) error {
	return w.apply(ctx, requestAuthentications, w.namespaceOf(workload), workloadName(workload), map[string]any{
		"selector": map[string]any{"matchLabels": map[string]any{"app": workloadName(workload)}}, "jwtRules": w.takes("accounts")})
}

func (w *World) takes(audience string) []any {
	return []any{map[string]any{"issuer": w.issuer.Name, "jwks": w.issuer.Keys, "audiences": []any{audience}}}
}

// createQuestion has the authorizer asked about a path of a workload.
func (w *World) createQuestion(ctx context.Context, workload int) error {
	return w.apply(ctx, authorizationPolicies, w.namespaceOf(workload), questionOf(workload), map[string]any{
		"selector": map[string]any{"matchLabels": map[string]any{"app": workloadName(workload)}},
		"action":   "CUSTOM", "provider": map[string]any{"name": authorizer}, "rules": []any{deny("/asked")}})
}

func questionOf(workload int) string { return workloadName(workload) + "-asked" }

// TokenChange has one of the workloads take the tokens for another audience.
func (w *World) TokenChange(n int) Change {
	workload, audience := n%w.verified(), fmt.Sprintf("changed-audience-%06d", n)
	return Change{
		Marker: audience, Affects: func(m fleet.Member) bool { return m.Workload == workloadName(workload) },
		Make: func(ctx context.Context) error {
			return w.change(ctx, requestAuthentications, w.namespaceOf(workload), workloadName(workload), "jwtRules", w.takes(audience))
		},
	}
}

// QuestionChange has the authorizer asked about another path of one of the workloads.
func (w *World) QuestionChange(n int) Change {
	workload, path := n%w.verified(), fmt.Sprintf("/changed-question-%06d", n)
	return Change{
		Marker: path, Affects: func(m fleet.Member) bool { return m.Workload == workloadName(workload) },
		Make: func(ctx context.Context) error {
			return w.change(ctx, authorizationPolicies, w.namespaceOf(workload), questionOf(workload), "rules", []any{deny(path)})
		},
	}
}
