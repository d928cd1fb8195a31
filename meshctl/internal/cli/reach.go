package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

func (a *app) reach() *cobra.Command {
	var output, namespace, to string
	cmd := &cobra.Command{
		Use: "reach POD|deploy/NAME", Short: "Show what a workload may call, or with --to who may call a service, and why",
		Long: "Proxies know only the services that a policy may admit their pod to, or from which policies leave nobody out. See docs/reach.md.\n" +
			"That a service may be called does not mean that every request is allowed: its own proxy decides on each.",
		Example: "  meshctl reach -n finance deploy/payroll\n  meshctl reach -n finance --to ledger\n  meshctl reach --to finance/ledger -o json",
		Args: func(cmd *cobra.Command, args []string) error {
			if asked := cmd.Flags().Changed("to"); asked != (len(args) == 0) || len(args) > 1 {
				return errors.New("name a workload (POD or deploy/NAME), or with --to a service")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.reachOf(cmd.Context(), namespace, args[0], output)
			}
			service, err := serviceID(namespace, cmd.Flags().Changed("namespace"), to)
			if err != nil {
				return err
			}
			return a.reachTo(cmd.Context(), service, output)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the workload or the service")
	cmd.Flags().StringVar(&to, "to", "", "the service, NAME or NAMESPACE/NAME")
	outputFlag(cmd, &output)
	return cmd
}

// serviceID is the namespace and the name of a service that is named by NAME or, if no namespace is given beside it, NAMESPACE/NAME.
func serviceID(namespace string, given bool, name string) (string, error) {
	if first, second, both := strings.Cut(name, "/"); both && !given {
		namespace, name = first, second
	}
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", errors.New("--to: name a service, NAME of the namespace of -n or NAMESPACE/NAME")
	}
	return namespace + "/" + name, nil
}

func (a *app) reachOf(ctx context.Context, namespace, workload, output string) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	pod, err := podName(ctx, client, namespace, workload)
	if err != nil {
		return err
	}
	var answer operatorv1.Reach
	if err := askPilot(ctx, client, "/v1/reach", url.Values{"workload": {namespace + "/" + pod}}, &answer); err != nil {
		return err
	}
	return a.out.Value(output, answer, func(out *printer.Printer) { showReach(out, answer) })
}

func (a *app) reachTo(ctx context.Context, service, output string) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	var answer operatorv1.Audience
	if err := askPilot(ctx, client, "/v1/reach", url.Values{"service": {service}}, &answer); err != nil {
		return err
	}
	return a.out.Value(output, answer, func(out *printer.Printer) { showAudience(out, answer) })
}

func showReach(out *printer.Printer, r operatorv1.Reach) {
	if !r.Proxied {
		out.Line("Pod %s has no proxy: nothing keeps it from sending to any address. It has no identity either, so the proxies of others decide without one.", r.Pod)
		return
	}
	if len(r.Services) == 0 {
		out.Line("Pod %s may call no service.", r.Pod)
	} else {
		t := out.Table("SERVICE", "PORTS", "BY")
		for _, s := range r.Services {
			by := strings.Join(s.By, ", ")
			switch {
			case s.Everyone:
				by = "everyone: " + s.Open
			case s.Open != "":
				by = "exported to its namespace: " + s.Open
			}
			t.Row(s.Service, ports(s.Ports), by)
		}
		t.Flush()
	}
	if len(r.Outside) > 0 {
		t := out.Table("OUTSIDE", "PORT", "SERVICEENTRY", "HOW")
		for _, x := range r.Outside {
			t.Row(x.Host, ports([]operatorv1.Port{x.Port}), x.ServiceEntry, how(x))
		}
		t.Flush()
	}
	switch {
	case r.Sidecar != "" && len(r.Hidden) == 0:
		out.Line("Sidecar %s holds for it, and hides nothing that it could reach otherwise.", r.Sidecar)
	case r.Sidecar != "":
		out.Line("Sidecar %s hides what it could reach otherwise: %s", r.Sidecar, first(r.Hidden))
	}
	if r.Confined {
		out.Line("Sidecar %s keeps it from everything else (outboundTrafficPolicy).", r.Sidecar)
	}
	if len(r.NotExported) > 0 {
		out.Line("What it could reach is not exported to its namespace: %s", first(r.NotExported))
	}
}

// how says how something outside of the mesh is spoken with.
func how(x operatorv1.External) string {
	by := " by DestinationRule " + x.Rule
	switch {
	case x.Rule == "" && x.TLS == "":
		return "as clients speak"
	case x.Rule == "":
		return "mutual TLS of the mesh"
	case x.Closed:
		return "not at all:" + by + ", which cannot be enforced"
	case x.TLS == "":
		return "as clients speak," + by
	}
	return "TLS (" + x.TLS + ")" + by
}

func showAudience(out *printer.Printer, a operatorv1.Audience) {
	switch {
	case a.Everyone:
		out.Line("Everyone may call %s: %s.", a.Service, a.Open)
	case len(a.Members) == 0 && a.Open != "":
		out.Line("Nobody may call %s: it is exported to no namespace.", a.Service)
	case len(a.Members) == 0:
		out.Line("Nobody may call %s: no policy admits anybody to whom it is exported.", a.Service)
	default:
		t := out.Table("WHO", "BY")
		for _, m := range a.Members {
			who, by := m.Namespace+"/*", strings.Join(m.By, ", ")
			if m.ServiceAccount != "" {
				who = m.Namespace + "/" + m.ServiceAccount
			}
			if len(m.By) == 0 {
				by = "everyone of the namespace: " + a.Open
			}
			t.Row(who, by)
		}
		t.Flush()
	}
	if len(a.ExportTo) > 0 {
		out.Line("It is exported to: %s", first(a.ExportTo))
	}
	for _, h := range a.Hidden {
		out.Line("Sidecar %s hides it from %d pods that could reach it otherwise.", h.Sidecar, h.Pods)
	}
}

func ports(list []operatorv1.Port) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = fmt.Sprintf("%d %s", p.Number, p.Protocol)
	}
	return strings.Join(texts, ", ")
}

// firstNames is how many names a line has; -o json has all.
const firstNames = 10

func first(names []string) string {
	text := strings.Join(names[:min(firstNames, len(names))], ", ")
	if more := len(names) - firstNames; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}
