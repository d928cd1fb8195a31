package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/identities"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// proxy is one connected proxy, as Pilot's operator API shows it.
type proxy struct {
	Proxy       string                     `json:"proxy"`
	Node        string                     `json:"node"`
	Identity    string                     `json:"identity"`
	ConnectedAt time.Time                  `json:"connectedAt"`
	Synced      bool                       `json:"synced"`
	Types       map[string]deltaxds.Status `json:"types"`
	Pilot       string                     `json:"pilot"`
}

func (a *app) status() *cobra.Command {
	var output, namespace string
	cmd := &cobra.Command{
		Use: "status", Aliases: []string{"proxy-status", "ps"}, Short: "Show the proxies and whether each has the current configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			proxies, err := proxies(cmd.Context(), client)
			if err != nil {
				return err
			}
			if namespace != "" {
				proxies = slices.DeleteFunc(proxies, func(p proxy) bool { return !hasNamespace(p.Proxy, namespace) })
			}
			return a.out.Value(output, proxies, func(out *printer.Printer) { showProxies(out, proxies) })
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only proxies of this namespace")
	outputFlag(cmd, &output)
	return cmd
}

// showProxies shows each proxy's state, and after the table what each refuses and why.
func showProxies(out *printer.Printer, proxies []proxy) {
	t := out.Table("NAME", "IDENTITY", "CDS", "EDS", "LDS", "RDS", "ECDS", "PILOT")
	for _, p := range proxies {
		t.Row(p.Proxy, identities.Short(p.Identity), state(p, "CDS"), state(p, "EDS"), state(p, "LDS"), state(p, "RDS"), state(p, "ECDS"), p.Pilot)
	}
	t.Flush()
	for _, p := range proxies {
		for _, kind := range slices.Sorted(maps.Keys(p.Types)) {
			if s := p.Types[kind]; s.Error != "" {
				out.Line("%s refuses %s resource %s: %s", p.Proxy, kind, cmp.Or(s.Resource, "(which one is being found out)"), s.Error)
			}
		}
	}
}

// state is what istioctl calls it.
func state(p proxy, kind string) string {
	s, ok := p.Types[kind]
	switch {
	case !ok:
		return "NOT SENT"
	case s.Error != "":
		return "ERROR"
	case s.Pending:
		return "STALE"
	default:
		return "SYNCED"
	}
}

func hasNamespace(proxy, namespace string) bool {
	suffix := "." + namespace
	return len(proxy) > len(suffix) && proxy[len(proxy)-len(suffix):] == suffix
}

// proxies asks every Pilot for the proxies connected to it.
func proxies(ctx context.Context, client *kube.Client) ([]proxy, error) {
	pods, err := operator.Pods(ctx, client, "pilot")
	if err != nil {
		return nil, err
	}
	all := []proxy{}
	for _, pod := range pods {
		conn, err := operator.Connect(ctx, client, &pod)
		if err != nil {
			return nil, err
		}
		var these []proxy
		err = conn.GetJSON(ctx, "/v1/proxies", &these)
		conn.Close()
		if err != nil {
			return nil, fmt.Errorf("asking pod %s: %w", pod.Name, err)
		}
		for _, p := range these {
			p.Pilot = pod.Name
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b proxy) int { return cmp.Compare(a.Proxy, b.Proxy) })
	return all, nil
}
