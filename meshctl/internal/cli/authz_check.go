package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pilot/explain"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func (a *app) authzCheck() *cobra.Command {
	var namespace, output string
	var w world
	cmd := &cobra.Command{
		Use: "check POD|deploy/NAME", Short: "Compare the rules that a pod's Envoy holds with those of the policies and those that Pilot sends", Args: cobra.ExactArgs(1),
		Long: "Asks Pilot for what it sends, and the pod's Envoy, by a port-forward to its admin port, for what it has. It takes the right `create pods/portforward` in the pod's namespace.\n" +
			"It exits with 0 if all agree, with 1 if not, with 2 if somebody could not be asked.",
		Example: "  meshctl authz check -n finance deploy/payroll\n  meshctl authz check -n finance payroll-5d9c-abc -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, m, err := a.mesh(cmd.Context(), w, cmd.InOrStdin(), namespace)
			if err != nil {
				return err
			}
			rules, err := heldRules(cmd.Context(), client, m, namespace, args[0])
			if err != nil {
				return err
			}
			err = a.out.Value(output, rules, func(out *printer.Printer) { showHeldRules(out, rules) })
			if err == nil && slices.ContainsFunc(rules, func(r explain.HeldRule) bool { return !r.Good() }) {
				return no
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	outputFlag(cmd, &output)
	cmd.ValidArgsFunction = a.completeWorkload(&w, &namespace)
	return cmd
}

// maxConfig bounds what Envoy says of its configuration, in bytes.
const maxConfig = 256 << 20

// configTimeout bounds how long it may take to say it.
const configTimeout = 30 * time.Second

// heldRules asks Pilot, any of which knows the pod that is connected to its node's agent, and Envoy.
func heldRules(ctx context.Context, client *kube.Client, m *explain.Mesh, namespace, workload string) ([]explain.HeldRule, error) {
	name, err := podName(ctx, client, namespace, workload)
	if err != nil {
		return nil, err
	}
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("looking for the pod: %w", err)
	}
	var sent explain.Held
	var last error
	asking := eachPilot(ctx, client, func(_ string, conn *operator.Connection) error {
		if sent != nil {
			return nil
		}
		body, err := conn.Get(ctx, "/v1/config?"+url.Values{"proxy": {name + "." + namespace}}.Encode())
		if err != nil {
			last = err // another one may know the pod
			return nil
		}
		defer body.Close()
		sent, last = heldIn(body)
		return nil
	})
	if sent == nil {
		return nil, fmt.Errorf("asking Pilot what it sends to %s/%s (has the pod a proxy?): %w", namespace, name, cmp.Or(asking, last))
	}
	local, stop, err := operator.Forward(ctx, client, pod, mesh.ProxyAdminPort)
	if err != nil {
		return nil, err
	}
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, configTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/config_dump", local), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("asking the Envoy of pod %s/%s: %w", namespace, name, err)
	}
	defer resp.Body.Close()
	held, err := heldIn(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("what the Envoy of pod %s/%s says: %w", namespace, name, err)
	}
	return m.Compare(namespace, name, sent, held)
}

func heldIn(body io.Reader) (explain.Held, error) {
	text, err := io.ReadAll(io.LimitReader(body, maxConfig))
	if err != nil {
		return nil, err
	}
	return explain.HeldIn(text)
}

func showHeldRules(out *printer.Printer, rules []explain.HeldRule) {
	if len(rules) == 0 {
		out.Line("No rule holds for the pod, and its Envoy has none.")
		return
	}
	yes := map[bool]string{true: "yes", false: "no"}
	t := out.Table("RULE", "ACTION", "POLICIES HAVE IT", "PILOT SENDS IT", "ENVOY HOLDS IT", "")
	good := 0
	for _, r := range rules {
		what := ""
		switch {
		case r.Good():
			good++
		case r.Other:
			what = "Envoy's is another"
		case r.Sent && !r.Held:
			what = "not taken yet, or refused: meshctl status"
		case r.Wanted && !r.Sent:
			what = "Pilot has not heard of it yet, or holds a removal back: meshctl pilot held"
		default:
			what = "left from before"
		}
		t.Row(r.Rule, string(r.Action), yes[r.Wanted], yes[r.Sent], yes[r.Held], what)
	}
	t.Flush()
	out.Line("%d of %d rules agree.", good, len(rules))
}
