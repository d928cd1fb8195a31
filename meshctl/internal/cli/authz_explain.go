package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pilot/explain"
)

// askFlags are the flags that describe a request.
type askFlags struct {
	explain.Ask
	headers  []string
	claims   []string
	sourceIP string
	remoteIP string
}

func (f *askFlags) request(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.Method, "method", "X", "", "method of HTTP; all gRPC is POST")
	flags.StringVar(&f.Path, "path", "", "path, as it is sent")
	flags.Uint32Var(&f.Port, "port", 0, "port of the workload, or of a Service that selects it")
}

func (f *askFlags) all(cmd *cobra.Command) {
	f.request(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.From, "from", "", "who asks: NAMESPACE/ACCOUNT, ACCOUNT of the namespace of -n, or a SPIFFE ID")
	flags.BoolVar(&f.Plaintext, "plaintext", false, "the client has no identity, as it speaks no mutual TLS")
	flags.StringVar(&f.To, "to", "", "whom: deploy/NAME, svc/NAME or pod/NAME, of the namespace of -n")
	flags.BoolVar(&f.TCP, "tcp", false, "a connection that is not HTTP")
	flags.StringVar(&f.Host, "host", "", "authority of the request (Host)")
	flags.StringVar(&f.SNI, "sni", "", "server name of the client's handshake (default: what proxies send)")
	flags.StringArrayVar(&f.headers, "header", nil, "header, NAME=VALUE; may be given several times")
	flags.StringArrayVar(&f.claims, "claim", nil, "claim of the request's token, which is taken for a good one: NAME=VALUE, or NAME.NAME=VALUE of one within another; given twice it is a list")
	flags.StringVar(&f.sourceIP, "source-ip", "", "address of the client")
	flags.StringVar(&f.remoteIP, "remote-ip", "", "address of the client that load balancers or trusted proxies have named")
}

// ask reads what is no plain flag.
func (f *askFlags) ask(namespace string) (explain.Ask, error) {
	f.Namespace, f.Headers = namespace, map[string][]string{}
	for _, h := range f.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return f.Ask, fmt.Errorf("--header %s: write NAME=VALUE", h)
		}
		name = strings.ToLower(name)
		f.Headers[name] = append(f.Headers[name], value)
	}
	for _, c := range f.claims {
		name, value, ok := strings.Cut(c, "=")
		if !ok || name == "" || slices.Contains(strings.Split(name, "."), "") {
			return f.Ask, fmt.Errorf("--claim %s: write NAME=VALUE", c)
		}
		if f.Claims == nil {
			f.Claims = map[string]any{}
		}
		if err := addClaim(f.Claims, strings.Split(name, "."), value); err != nil {
			return f.Ask, fmt.Errorf("--claim %s: %w", c, err)
		}
	}
	for _, address := range []struct {
		flag, text string
		into       *netip.Addr
	}{{"--source-ip", f.sourceIP, &f.SourceIP}, {"--remote-ip", f.remoteIP, &f.RemoteIP}} {
		if address.text == "" {
			continue
		}
		ip, err := netip.ParseAddr(address.text)
		if err != nil {
			return f.Ask, fmt.Errorf("%s %s is no IP address", address.flag, address.text)
		}
		*address.into = ip
	}
	return f.Ask, nil
}

// addClaim adds a value of a claim, which is a list if it has several.
func addClaim(claims map[string]any, path []string, value string) error {
	name := path[0]
	switch was := claims[name].(type) {
	case nil:
		if len(path) == 1 {
			claims[name] = value
			return nil
		}
		within := map[string]any{}
		claims[name] = within
		return addClaim(within, path[1:], value)
	case map[string]any:
		if len(path) > 1 {
			return addClaim(was, path[1:], value)
		}
	case string:
		if len(path) == 1 {
			claims[name] = []any{was, value}
			return nil
		}
	case []any:
		if len(path) == 1 {
			claims[name] = append(was, value)
			return nil
		}
	}
	return fmt.Errorf("%s is a value and has others within it", name)
}

func (a *app) authzExplain() *cobra.Command {
	var w world
	var f askFlags
	var namespace, output string
	var event uint64
	cmd := &cobra.Command{
		Use: "explain", Short: "Explain how one request is decided: by which rule, what nearly matched, and what would admit it", Args: cobra.NoArgs,
		Long: "Describe the request by flags, or name a record of the audit trail by its index (meshctl audit tail -o json).\n" +
			"For a denial it prints the smallest change that admits exactly this identity, port, method and path, as YAML to apply after reading.\n" +
			"It exits with 0 if the request is allowed, with 1 if it is denied, with 2 if that cannot be told.",
		Example: "  meshctl authz explain -n finance --from web --to deploy/payroll -X GET --path /accounts/1\n" +
			"  meshctl authz explain --event 1234\n" +
			"  meshctl authz explain -n finance --plaintext --to svc/payroll --port 80 -f proposed/\n" +
			"  meshctl authz explain -n finance --from web --to deploy/payroll --offline -f manifests/ -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			described := cmd.Flags().Changed("from") || cmd.Flags().Changed("plaintext")
			if cmd.Flags().Changed("event") == described || !cmd.Flags().Changed("event") && f.To == "" {
				return errors.New("describe a request (--from NAMESPACE/ACCOUNT or --plaintext, and --to deploy/NAME), or name a record of the audit trail (--event)")
			}
			if w.offline && !described {
				return errors.New("--event asks Mixer for the record, and --offline nobody")
			}
			ask, err := f.ask(namespace)
			if err != nil {
				return err
			}
			client, m, err := a.mesh(ctx, w, cmd.InOrStdin(), namespace)
			if err != nil {
				return err
			}
			var recorded *explain.Recorded
			if !described {
				if recorded, err = recordOf(ctx, client, m, event); err != nil {
					return err
				}
				ask = recorded.Ask
			}
			answer, err := m.Explain(ask)
			if err != nil {
				return err
			}
			said := struct {
				*explain.Answer
				Recorded *explain.Recorded `json:"recorded,omitempty"`
			}{answer, recorded}
			if err := a.out.Value(output, said, func(out *printer.Printer) { showAnswer(out, answer, recorded) }); err != nil || answer.Allowed {
				return err
			}
			return no
		},
	}
	w.flags(cmd, "files or folders of policies to be laid over the cluster's; - is the input")
	f.all(cmd)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the workload, and of an account that is named without one")
	cmd.Flags().Uint64Var(&event, "event", 0, "index of a record of the audit trail")
	outputFlag(cmd, &output)
	complete(cmd, "to", a.completeWorkload(&w, &namespace))
	complete(cmd, "from", a.completeAccount(&w))
	return cmd
}

// most is how many rules and notes of a kind a table has; -o json has all.
const most = 8

func showAnswer(out *printer.Printer, e *explain.Answer, recorded *explain.Recorded) {
	verdict := "DENIED"
	if e.Allowed {
		verdict = "ALLOWED"
	}
	client := e.Client
	if client == "" {
		client = "a client without identity"
	}
	switch {
	case e.Policy != "":
		out.Line("%s by %s: %s", verdict, e.Policy, e.Reason)
	default:
		out.Line("%s by %s: %s", verdict, string(e.By), e.Reason)
	}
	t := out.Table()
	t.Row("From:", client)
	t.Row("To:", fmt.Sprintf("%s, port %d (%s, mutual TLS %s)", e.Workload, e.Port, e.Protocol, e.Mode))
	t.Row(brief("Request:", e.Request)...)
	if recorded != nil {
		t.Row("Recorded:", recorded.Summary())
	}
	if len(e.Selected) > 0 {
		t.Row("Policies:", first(e.Selected))
	} else {
		t.Row("Policies:", "none selects the workload")
	}
	if len(e.Audited) > 0 {
		t.Row("Audited by:", first(e.Audited))
	}
	t.Flush()
	for _, n := range e.Notes {
		out.Line("Note: %s.", n)
	}
	showNearest(out, e)
	if d := e.DryRun; d != nil {
		would := "denied"
		if d.Allowed {
			would = "allowed"
		}
		out.Line("")
		out.Line("If the policies that are tried out were enforced, it would be %s: %s", would, strings.TrimSpace(d.Policy+" "+d.Reason))
	}
	showChange(out, e)
}

func showNearest(out *printer.Printer, e *explain.Answer) {
	if len(e.Nearest) == 0 {
		return
	}
	out.Line("")
	out.Line("Rules that did not match, the nearest first:")
	t := out.Table("RULE", "ACTION", "WHAT DID NOT HOLD", "ASKED", "THE REQUEST HAS")
	for _, n := range e.Nearest[:min(most, len(e.Nearest))] {
		action := string(n.Action)
		if n.DryRun {
			action += ", tried out"
		}
		if len(n.Missed) == 0 {
			t.Row(n.Policy, action, n.Why, "", "")
			continue
		}
		m := n.Missed[0]
		what := strings.TrimPrefix(m.Field, "spec.")
		if more := len(n.Missed) - 1; more > 0 {
			what += fmt.Sprintf(", and %d more", more)
		}
		asked := first(m.Asked)
		if m.Not {
			asked = "not " + asked
		}
		has := "nothing"
		if len(m.Had) > 0 {
			has = first(m.Had)
		}
		t.Row(brief(n.Policy, action, what, asked, has)...)
	}
	t.Flush()
	if more := len(e.Nearest) - most; more > 0 {
		out.Line("and %d more (-o json)", more)
	}
}

func showChange(out *printer.Printer, e *explain.Answer) {
	if e.NoChange != "" {
		out.Line("")
		out.Line("No change of policies is proposed: %s.", e.NoChange)
	}
	if len(e.Change) == 0 {
		return
	}
	out.Line("")
	out.Line("# The smallest change that admits exactly this identity, port, method and path. Read it, then apply it with kubectl apply -f.")
	for _, n := range e.ChangeNotes {
		out.Line("# Note: %s.", n)
	}
	for _, o := range e.Change {
		out.Line("---")
		_ = out.YAML(o) // the printer keeps the error
	}
}
