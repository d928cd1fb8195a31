package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/objects"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pilot/analyze"
	"github.com/bulwark-mesh/bulwark/pilot/offline"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// analysis is what a command line of analyze asks.
type analysis struct {
	files, suppress          []string
	namespace, output        string
	show, fail               string // thresholds
	offline, whole, all      bool
	mesh                     meshFlags
	suppressed               []suppression
	showAtLeast, failAtLeast analyze.Severity
}

func (a *app) analyze() *cobra.Command {
	o := analysis{}
	cmd := &cobra.Command{
		Use: "analyze [FILE|FOLDER|-]...", Short: "Find mistakes in policies and what they are for, in the cluster, in files, or in both",
		Long: "Without files the cluster is looked at; with files, the cluster as if they were applied; with --offline, the files alone. Nothing is changed.\n" +
			"Each finding has a code that docs/analyze.md explains, with an example and what to do. The annotation " + analyze.IgnoreAnnotation + " of an object leaves\n" +
			"codes out. Exits with 0 if nothing is as bad as --failure-threshold, with 1 if something is, with 2 if it could not look.",
		Example: "  meshctl analyze\n  meshctl analyze -f policies/\n  meshctl analyze --offline policies/ deploy.yaml\n  kustomize build overlay | meshctl analyze -\n" +
			"  meshctl analyze --suppress \"BW0104=AuthorizationPolicy shop/*\" -o json",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.files = append(o.files, args...)
			if err := o.check(); err != nil {
				return err
			}
			return a.runAnalysis(cmd.Context(), o, cmd.InOrStdin())
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.files, "filename", "f", nil, "file or folder, or - for the input; as good as an argument")
	f.BoolVar(&o.offline, "offline", false, "ask no cluster: look at the files alone")
	f.BoolVar(&o.whole, "whole", false, "with --offline: the files are all that there is, so what is not in them is missing")
	f.StringVarP(&o.namespace, "namespace", "n", "", "show findings of this namespace alone; objects in files that name none are in it (else in \"default\")")
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "show findings of all namespaces, also with -n (the default without)")
	f.StringArrayVar(&o.suppress, "suppress", nil, "leave findings out: CODE, or CODE=KIND NAMESPACE/NAME; * stands for anything")
	f.StringVar(&o.show, "output-threshold", string(analyze.Info), "least severity to show: error, warning or info")
	f.StringVar(&o.fail, "failure-threshold", string(analyze.Error), "least severity to fail for: error, warning or info")
	o.mesh.flags(cmd)
	outputFlag(cmd, &o.output)
	for flag, words := range map[string][]string{"suppress": codeNames(), "output-threshold": severityNames(), "failure-threshold": severityNames(), "output": {"table", "json", "yaml"}} {
		complete(cmd, flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	scripted(cmd)
	return cmd
}

func codeNames() (out []string) {
	for _, c := range analyze.Codes {
		out = append(out, c.Code+"\t"+c.Title)
	}
	return out
}

func severityNames() (out []string) {
	for _, s := range analyze.Severities {
		out = append(out, string(s))
	}
	return out
}

// check makes of the flags what they mean.
func (o *analysis) check() (err error) {
	switch {
	case o.offline && len(o.files) == 0:
		return errors.New("--offline: name files or folders to look at")
	case o.whole && !o.offline:
		return errors.New("--whole says that the files are all that there is; give it with --offline")
	case !slices.Contains([]string{"table", "json", "yaml"}, o.output):
		return fmt.Errorf("--output %s: use table, json or yaml", o.output)
	}
	if err := o.mesh.check(o.offline, o.files); err != nil {
		return err
	}
	if o.showAtLeast, err = severityOf("--output-threshold", o.show); err != nil {
		return err
	}
	if o.failAtLeast, err = severityOf("--failure-threshold", o.fail); err != nil {
		return err
	}
	for _, text := range o.suppress {
		s, err := suppressionOf(text)
		if err != nil {
			return err
		}
		o.suppressed = append(o.suppressed, s)
	}
	return nil
}

// severityOf reads a severity as istioctl does, in any case.
func severityOf(flag, text string) (analyze.Severity, error) {
	if s := analyze.Severity(strings.ToLower(text)); slices.Contains(analyze.Severities, s) {
		return s, nil
	}
	return "", fmt.Errorf("%s %s: use error, warning or info", flag, text)
}

// suppression leaves findings of a code out, of all objects or of those that a pattern names.
type suppression struct{ text, code, object string }

func suppressionOf(text string) (suppression, error) {
	code, object, named := strings.Cut(text, "=")
	s := suppression{text, strings.TrimSpace(code), strings.TrimSpace(object)}
	if !named {
		s.object = "*"
	}
	if !slices.ContainsFunc(analyze.Codes, func(c analyze.Code) bool { return glob(s.code, c.Code) }) {
		return s, fmt.Errorf("--suppress %q: there is no code %s; docs/analyze.md has all", text, s.code)
	}
	if kind, name, both := strings.Cut(s.object, " "); s.object != "*" && (!both || kind == "" || name == "") {
		return s, fmt.Errorf("--suppress %q: name an object as KIND NAMESPACE/NAME, such as \"AuthorizationPolicy shop/readers\"", text)
	}
	return s, nil
}

// hides reports whether a finding is to be left out. An object may be written as istioctl has it, NAME.NAMESPACE.
func (s suppression) hides(f analyze.Finding) bool {
	return glob(s.code, f.Code) && (glob(s.object, f.Object.String()) || glob(s.object, f.Object.Kind+" "+f.Object.Name+"."+f.Object.Namespace))
}

// glob reports whether a text is as a pattern says, in which * stands for anything.
func glob(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	rest, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	for _, middle := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, middle)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// analyzed is a finding, with the file that its object is in.
type analyzed struct {
	analyze.Finding
	File string `json:"file,omitempty"`
}

// reported is what is printed.
type reported struct {
	Findings   []analyzed `json:"findings"`
	Suppressed int        `json:"suppressed"` // by --suppress
	Objects    int        `json:"objects"`    // that were looked at
}

func (a *app) runAnalysis(ctx context.Context, o analysis, stdin io.Reader) error {
	in := analyze.Input{Whole: o.whole, Now: time.Now(), Options: authz.Options{TrustDomain: mesh.DefaultTrustDomain, RootNamespace: mesh.Namespace}}
	files := map[analyze.Object]string{}
	err := objects.EachInFiles(o.files, stdin, cmp.Or(o.namespace, "default"), func(file string, object *unstructured.Unstructured) {
		id := analyze.Object{Kind: object.GetKind(), Namespace: object.GetNamespace(), Name: object.GetName()}
		if before, twice := files[id]; twice {
			a.notes.Line("%s is in %s and in %s: the latter is looked at", id, before, file)
		}
		files[id] = file
		in.Files = append(in.Files, object)
		in.Accounts = in.Accounts || o.whole && object.GetKind() == "ServiceAccount"
	}, func(file string, err error) { a.notes.Line("%s is passed over: %s", file, err) })
	if err != nil {
		return err
	}
	if o.offline {
		if in.Options, in.Cluster, err = o.mesh.installed(stdin, in.Options); err != nil {
			return err
		}
		if untold := o.mesh.untold(in.Files); untold != "" {
			a.notes.Line("%s", untold)
		}
	} else if err := a.fromCluster(ctx, &in); err != nil {
		return err
	}
	in.Options = o.mesh.over(in.Options)
	found, err := analyze.Analyze(in)
	if err != nil {
		return err
	}
	result := o.selected(found, files)
	result.Objects = len(in.Cluster) + len(in.Files)
	if err := a.out.Value(o.output, result, func(out *printer.Printer) { showFindings(out, result) }); err != nil {
		return err
	}
	if slices.ContainsFunc(result.Findings, func(f analyzed) bool { return f.Severity.AtLeast(o.failAtLeast) }) {
		return no
	}
	return nil
}

// selected are the findings that were asked for. One that is not shown does not fail either, but for its severity.
func (o *analysis) selected(found []analyze.Finding, files map[analyze.Object]string) reported {
	out := reported{Findings: []analyzed{}}
	for _, f := range found {
		switch {
		case o.namespace != "" && !o.all && f.Object.Namespace != o.namespace:
		case slices.ContainsFunc(o.suppressed, func(s suppression) bool { return s.hides(f) }):
			out.Suppressed++
		case f.Severity.AtLeast(o.showAtLeast) || f.Severity.AtLeast(o.failAtLeast):
			out.Findings = append(out.Findings, analyzed{f, files[f.Object]})
		}
	}
	return out
}

// showFindings has two lines for each: what it is of, and what it says.
func showFindings(out *printer.Printer, r reported) {
	counts := map[analyze.Severity]int{}
	for _, f := range r.Findings {
		counts[f.Severity]++
		place := f.Object.String()
		if f.Field != "" {
			place += "  " + f.Field
		}
		if f.File != "" {
			place += "  (" + f.File + ")"
		}
		out.Columns([]int{7, 6}, string(f.Severity), f.Code, place)
		switch f.Basis {
		case analyze.Guess:
			out.Line("         %s, perhaps (a guess): %s", f.Title, f.Message)
		case analyze.FromTraffic:
			out.Line("         %s (seen in traffic): %s", f.Title, f.Message)
		default:
			out.Line("         %s: %s", f.Title, f.Message)
		}
	}
	hidden := ""
	if r.Suppressed > 0 {
		hidden = fmt.Sprintf(" %s left out by --suppress.", several(r.Suppressed, "finding"))
	}
	if len(r.Findings) == 0 {
		out.Line("No findings in %s.%s", several(r.Objects, "object"), hidden)
		return
	}
	var parts []string
	for _, s := range analyze.Severities {
		if counts[s] > 0 {
			parts = append(parts, several(counts[s], string(s)))
		}
	}
	out.Line("%s in %s.%s docs/analyze.md explains each code.", strings.Join(parts, ", "), several(r.Objects, "object"), hidden)
}

func several(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// fromCluster adds what the cluster has. What may not be listed is left out where the rest can be looked at without.
func (a *app) fromCluster(ctx context.Context, in *analyze.Input) error {
	client, err := a.connect(ctx)
	if err != nil {
		return fmt.Errorf("%w (--offline looks at files alone)", err)
	}
	switch in.Options, err = installedOptions(ctx, client, in.Options); {
	case kube.FailureOf(err) == kube.Forbidden:
		a.notes.Line("The mesh's settings may not be read: its trust domain is taken to be %s (--trust-domain says otherwise)", in.Options.TrustDomain)
	case err != nil:
		return err
	}
	watched := offline.Resources()
	in.Whole, in.Accounts = true, true
	kinds := analyze.Kinds()
	found, errs := objects.EachInCluster(ctx, client, kinds)
	for i, r := range kinds {
		err := errs[i]
		isWatched := slices.ContainsFunc(watched, func(w offline.Resource) bool { return w.GroupResource() == r.GroupResource() })
		switch {
		case err == nil:
			in.Cluster = append(in.Cluster, found[i]...)
		case kube.FailureOf(err) != kube.Forbidden:
			return err
		case isWatched:
			return fmt.Errorf("%w (this has to be listed in all namespaces; --offline looks at files alone)", err)
		case r.Kind == "ServiceAccount":
			in.Accounts = false
			a.notes.Line("ServiceAccounts may not be listed: that one is not there is not said (BW0104)")
		default:
			in.Whole = false
			a.notes.Line("%ss may not be listed: what is not there may be their pods', so that it is missing is a guess", r.Kind)
		}
	}
	if slices.ContainsFunc(in.Files, func(o *unstructured.Unstructured) bool { return o.GetKind() == "PeerAuthentication" }) {
		if in.Plaintext, err = a.countedPlaintext(ctx); err != nil {
			a.notes.Line("Mixer says nothing of traffic, so whom STRICT would refuse is a guess (BW0116): %s", err)
		}
	}
	return nil
}

// countedPlaintext is what proxies have counted without mutual TLS, as Mixer knows it.
func (a *app) countedPlaintext(ctx context.Context) ([]analyze.Plaintext, error) {
	conn, err := a.toMixer(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var overview struct {
		Edges []struct {
			Destination string  `json:"destination"`
			Security    string  `json:"security"`
			Requests    float64 `json:"requests"`
		} `json:"edges"`
	}
	if err := conn.GetJSON(ctx, "/v1/overview", &overview); err != nil {
		return nil, err
	}
	out := []analyze.Plaintext{}
	for _, e := range overview.Edges {
		if id, err := spiffe.Parse(e.Destination); err == nil && e.Security == "none" && e.Requests > 0 {
			out = append(out, analyze.Plaintext{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Count: e.Requests})
		}
	}
	return out, nil
}
