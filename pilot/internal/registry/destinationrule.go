package registry

import (
	"fmt"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
	istio "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// DestinationRules are Istio's DestinationRules. Of one, what it says of TLS is enforced: how proxies speak with a host, and how the host proves who it is.
var DestinationRules = &KindOf[DestinationRule]{
	name:     "destinationRule",
	resource: Resource{GroupVersionResource: istioNetworking.WithResource("destinationrules"), Kind: "DestinationRule"},
	source:   custom(makeDestinationRule),
	indexes:  []*memdb.IndexSchema{byNamespace, by("host", "Host"), byEach("exported", "ExportTo")},
	judge: func(d *DestinationRule) Verdict {
		v := verdictOn(d.ID, d.Generation, d.Host == "", d.Problems)
		v.Partly = !d.Broken()
		return v
	},
	advise:    adviseDestinationRule,
	uncounted: true,
}

// DestinationRule says how proxies speak with a host.
type DestinationRule struct {
	ID              string
	Namespace, Name string
	Host            string                // its whole name; empty: that of nothing
	TLS             *ClientTLS            // at all ports but those of PortTLS; nil: nothing is said
	PortTLS         map[uint32]*ClientTLS // by the host's port
	Subsets         bool                  // it has some
	ExportTo        []string              // namespaces whose workloads it is for, or "*", "."; nil: nothing is said
	Created         time.Time
	Generation      int64
	Problems        []authz.Problem
}

// For returns what it says of a port, nil if nothing.
func (d *DestinationRule) For(port uint32) *ClientTLS {
	if t, ok := d.PortTLS[port]; ok {
		return t
	}
	return d.TLS
}

// Broken reports whether something of what it says of TLS cannot be enforced.
func (d *DestinationRule) Broken() bool {
	broken := func(t *ClientTLS) bool { return t != nil && t.Broken }
	return broken(d.TLS) || slices.ContainsFunc(slices.Collect(maps.Values(d.PortTLS)), broken)
}

// Expects reports whether it names whom a server's certificate has to be of.
func (d *DestinationRule) Expects() bool {
	expects := func(t *ClientTLS) bool { return t != nil && len(t.SubjectAltNames) > 0 }
	return expects(d.TLS) || slices.ContainsFunc(slices.Collect(maps.Values(d.PortTLS)), expects)
}

func (d *DestinationRule) breakTLS() {
	for _, t := range d.PortTLS {
		if t != nil {
			t.Broken = true
		}
	}
	if d.TLS != nil {
		d.TLS.Broken = true
	}
}

// ClientTLS is TLS as a client speaks it.
type ClientTLS struct {
	Mode              TLSMode
	ServerName        string   // that the client asks for; empty: the host's
	SubjectAltNames   []string // of which the server's certificate has to have one; nil: the host's names
	CACertificates    string   // file of certificates that vouch for the server's; empty: the public ones
	ClientCertificate string   // file of the client's own
	PrivateKey        string   // file of its key
	Broken            bool     // it cannot be enforced as it is written, so no server is spoken to
}

// Secures reports whether it has proxies speak TLS with those who are no proxies of the mesh.
func (t *ClientTLS) Secures() bool {
	return t != nil && !t.Broken && (t.Mode == TLSSimple || t.Mode == TLSMutual)
}

// TLSMode is a mode of ClientTLS, by Istio's names.
type TLSMode string

// The modes.
const (
	TLSDisable      TLSMode = "DISABLE"
	TLSSimple       TLSMode = "SIMPLE"
	TLSMutual       TLSMode = "MUTUAL"
	TLSIstioMutual  TLSMode = "ISTIO_MUTUAL"
	systemRoots             = "system" // as Istio calls the public ones
	maxServerName           = 253      // RFC 1035, section 2.3.4
	maxFileName             = 4096
	maxPortSettings         = 100
)

// makeDestinationRule reads a DestinationRule. One that cannot be decoded is one whose TLS is broken.
func makeDestinationRule(u *unstructured.Unstructured, _ authz.Options) *DestinationRule {
	out := &DestinationRule{ID: IDOf(u), Namespace: u.GetNamespace(), Name: u.GetName(), Generation: u.GetGeneration(), Created: u.GetCreationTimestamp().UTC()}
	spec := &istio.DestinationRule{}
	unread := decodeSpec(u, spec)
	if unread != nil && !decodeKnown(u, spec) {
		out.Problems = unread
		host, _, _ := unstructured.NestedString(u.Object, "spec", "host")
		out.Host, _ = calledHost(host, out.Namespace)
		out.TLS = &ClientTLS{Broken: true}
		return out
	}
	r := &ruleReader{out: out}
	out.Problems = append(append(notTriedOut(u), unread...), fieldsBut("spec", spec, notYet, "host", "trafficPolicy", "subsets", "exportTo")...)
	var reason string
	if out.Host, reason = calledHost(spec.GetHost(), out.Namespace); reason != "" {
		r.problem("spec.host", "%q %s", spec.GetHost(), reason)
	}
	if p := spec.GetTrafficPolicy(); p != nil {
		out.Problems = append(out.Problems, fieldsBut("spec.trafficPolicy", p, notYet, "tls", "portLevelSettings")...)
		out.TLS = r.tls("spec.trafficPolicy.tls", p.GetTls())
		var most bool
		if out.PortTLS, most = r.ports("spec.trafficPolicy", p.GetPortLevelSettings()); !most {
			out.TLS = &ClientTLS{Broken: true}
		}
	}
	if unread != nil { // what is not known may be about TLS
		out.breakTLS()
	}
	r.subsets(spec.GetSubsets())
	out.ExportTo = spec.GetExportTo()
	for i, ns := range out.ExportTo {
		if ns != "*" && ns != "." && ns != "~" && len(validation.IsDNS1123Label(ns)) > 0 {
			r.problem(fmt.Sprintf("spec.exportTo[%d]", i), "%q is no namespace, nor one of . * ~", ns)
		}
	}
	return out
}

// calledHost is the whole name of a host, or says why there is none.
func calledHost(host, namespace string) (name, reason string) {
	const whole = "; a Service is named in full, such as web.shop.svc." + mesh.ClusterDomain
	switch {
	case host == "":
		return "", "is no name"
	case strings.Contains(host, "*") && (host == "*" || OfCluster(strings.TrimPrefix(host, "*."))):
		return "", "is a wildcard for Services, which " + notYet + "; they are called by mutual TLS without a rule"
	case !strings.Contains(host, ".") && len(validation.IsDNS1035Label(host)) == 0:
		return host + "." + namespace + ".svc." + mesh.ClusterDomain, ""
	}
	if IsService(host) {
		return host, ""
	}
	if reason := notOutside(host); reason != "" {
		return "", reason + whole
	}
	return host, ""
}

// IsService reports whether a name is a Service's, whether there is one or not.
func IsService(host string) bool {
	name, ok := strings.CutSuffix(host, ".svc."+mesh.ClusterDomain)
	service, namespace, both := strings.Cut(name, ".")
	return ok && both && len(validation.IsDNS1123Label(service)) == 0 && len(validation.IsDNS1123Label(namespace)) == 0
}

// ruleReader reads a DestinationRule, and notes what is wrong with it.
type ruleReader struct{ out *DestinationRule }

func (r *ruleReader) problem(field, format string, args ...any) {
	r.out.Problems = append(r.out.Problems, authz.Problem{Field: field, Reason: fmt.Sprintf(format, args...)})
}

// subsets looks at what is said of them as it does at what is said of all, though nothing is enforced of it: a VirtualService would have to route to them.
func (r *ruleReader) subsets(subsets []*istio.Subset) {
	r.out.Subsets = len(subsets) > 0
	names := map[string]bool{}
	for i, s := range subsets {
		field := fmt.Sprintf("spec.subsets[%d]", i)
		if names[s.GetName()] || len(validation.IsDNS1123Label(strings.ToLower(s.GetName()))) > 0 {
			r.problem(field+".name", "%q is no name, or that of another subset", s.GetName())
		}
		names[s.GetName()] = true
		for key, value := range s.GetLabels() {
			if len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(value)) > 0 {
				r.problem(field+".labels", "%q: %q is no label", key, value)
			}
		}
		if p := s.GetTrafficPolicy(); p != nil {
			r.out.Problems = append(r.out.Problems, fieldsBut(field+".trafficPolicy", p, notYet, "tls", "portLevelSettings")...)
			r.tls(field+".trafficPolicy.tls", p.GetTls())
			r.ports(field+".trafficPolicy", p.GetPortLevelSettings())
		}
	}
}

// ports reads what is said of TLS at single ports, and reports whether that is all.
func (r *ruleReader) ports(policy string, settings []*istio.TrafficPolicy_PortTrafficPolicy) (out map[uint32]*ClientTLS, all bool) {
	if len(settings) > maxPortSettings {
		r.problem(policy+".portLevelSettings", "has more than %d elements", maxPortSettings)
		return nil, false
	}
	for i, s := range settings {
		field := fmt.Sprintf("%s.portLevelSettings[%d]", policy, i)
		number := s.GetPort().GetNumber()
		if _, twice := out[number]; number == 0 || number > maxPort || twice {
			r.problem(field+".port.number", "%d is no port, or there are other settings for it", number)
		}
		r.out.Problems = append(r.out.Problems, fieldsBut(field, s, notYet, "port", "tls")...)
		if out == nil {
			out = map[uint32]*ClientTLS{}
		}
		out[number] = r.tls(field+".tls", s.GetTls()) // without it, the port has none of what is said of all (Istio's rule)
	}
	return out, true
}

// tls reads what is said of TLS. What cannot be enforced breaks it.
func (r *ruleReader) tls(field string, t *istio.ClientTLSSettings) *ClientTLS {
	if t == nil {
		return nil
	}
	before := len(r.out.Problems)
	out := &ClientTLS{Mode: TLSMode(t.GetMode().String()), ServerName: t.GetSni(), SubjectAltNames: t.GetSubjectAltNames(),
		ClientCertificate: t.GetClientCertificate(), PrivateKey: t.GetPrivateKey(), CACertificates: t.GetCaCertificates()}
	if out.CACertificates == systemRoots {
		out.CACertificates = ""
	}
	if t.InsecureSkipVerify.GetValue() {
		r.problem(field+".insecureSkipVerify", "is refused: whoever is on the way could be the server; name the authority that vouches for it (caCertificates)")
	}
	if t.CredentialName != "" {
		r.problem(field+".credentialName", "is refused: private keys do not pass through Pilot, which may read no Secrets; name files of the proxy's container (clientCertificate, privateKey, caCertificates)")
	}
	if t.CaCrl != "" {
		r.problem(field+".caCrl", notYet)
	}
	if len(t.SubjectAltNames) > maxEntryNames {
		r.problem(field+".subjectAltNames", "has more than %d elements", maxEntryNames)
	}
	r.out.Problems = append(r.out.Problems, badNames(field+".subjectAltNames", t.SubjectAltNames)...)
	if t.Sni != "" && (len(validation.IsDNS1123Subdomain(t.Sni)) > 0 || len(t.Sni) > maxServerName) {
		r.problem(field+".sni", "%q is no DNS name in lower case", t.Sni)
	}
	switch out.Mode {
	case TLSDisable:
		r.unsaid(field, t, "mode DISABLE")
	case TLSIstioMutual:
		if t.Sni != "" {
			r.problem(field+".sni", notYet+" with ISTIO_MUTUAL")
		}
		r.files(field, "mode ISTIO_MUTUAL, which has the mesh's certificates", t, "", "", "")
		r.out.Problems = append(r.out.Problems, notIdentities(field+".subjectAltNames", t.SubjectAltNames)...)
	case TLSSimple, TLSMutual:
		if out.Mode == TLSSimple {
			r.files(field, "mode SIMPLE", t, "", "", t.CaCertificates)
			break
		}
		for at, file := range []string{t.ClientCertificate, t.PrivateKey} {
			if name := []string{".clientCertificate", ".privateKey"}[at]; file == "" {
				r.problem(field+name, "is missing, which MUTUAL needs")
			} else {
				r.file(field+name, file)
			}
		}
		r.file(field+".caCertificates", out.CACertificates)
	default:
		r.problem(field+".mode", "%s "+notYet, out.Mode)
	}
	if len(r.out.Problems) > before {
		out.Broken = true
	}
	return out
}

// unsaid are fields that mean nothing without TLS.
func (r *ruleReader) unsaid(field string, t *istio.ClientTLSSettings, mode string) {
	r.files(field, mode, t, "", "", "")
	if t.Sni != "" {
		r.problem(field+".sni", "means nothing with %s", mode)
	}
	if len(t.SubjectAltNames) > 0 {
		r.problem(field+".subjectAltNames", "mean nothing with %s", mode)
	}
}

// files says of the files of a mode which it has; of the others it says that they mean nothing.
func (r *ruleReader) files(field, mode string, t *istio.ClientTLSSettings, certificate, key, roots string) {
	for _, f := range []struct{ name, file, meant string }{
		{".clientCertificate", t.ClientCertificate, certificate}, {".privateKey", t.PrivateKey, key}, {".caCertificates", t.CaCertificates, roots}} {
		if f.file != f.meant {
			r.problem(field+f.name, "means nothing with %s", mode)
		} else if f.file != systemRoots {
			r.file(field+f.name, f.file)
		}
	}
}

func (r *ruleReader) file(field, name string) {
	if name != "" && (!path.IsAbs(name) || path.Clean(name) != name || len(name) > maxFileName || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' })) {
		r.problem(field, "%q is no absolute path of a file in the proxy's container", name)
	}
}

// notIdentities are the problems of names that servers of the mesh cannot have.
func notIdentities(field string, names []string) (out []authz.Problem) {
	for i, n := range names {
		if !IsIdentity(n) {
			out = append(out, authz.Problem{Field: fmt.Sprintf("%s[%d]", field, i), Reason: fmt.Sprintf("%q is no identity, such as spiffe://%s/ns/shop/sa/web", n, "cluster.local")})
		}
	}
	return out
}

// IsIdentity reports whether a name may be that of a server of a mesh (SPIFFE ID, section 2).
func IsIdentity(name string) bool { return strings.HasPrefix(name, "spiffe://") }

// adviseDestinationRule says what of a DestinationRule may not be meant as it is written.
func adviseDestinationRule(d *DestinationRule) (out []string) {
	all := []*ClientTLS{d.TLS}
	for _, t := range d.PortTLS {
		all = append(all, t)
	}
	has := func(modes ...TLSMode) bool {
		return slices.ContainsFunc(all, func(t *ClientTLS) bool { return t != nil && slices.Contains(modes, t.Mode) })
	}
	if !has(TLSDisable, TLSSimple, TLSMutual, TLSIstioMutual) {
		out = append(out, "says nothing of TLS, and has no effect")
	}
	if d.Subsets {
		out = append(out, "spec.subsets: have no effect, as nothing routes to them: a VirtualService does, which "+notYet)
	}
	if has(TLSDisable) && IsService(d.Host) {
		out = append(out, "DISABLE: proxies speak plaintext with the Service, without an identity; a STRICT server refuses that, and no policy that asks who calls admits it")
	}
	if has(TLSSimple, TLSMutual) && IsService(d.Host) {
		out = append(out, "SIMPLE and MUTUAL: proxies speak TLS with the Service's applications instead of mutual TLS of the mesh; a STRICT server's proxy refuses that, and no policy that asks who calls admits it")
		for _, t := range all {
			if t != nil && (t.Mode == TLSSimple || t.Mode == TLSMutual) && t.CACertificates == "" {
				out = append(out, "no caCertificates: the application's certificate has to be one of the public authorities, which give none for names of a cluster")
				break
			}
		}
	}
	if !IsService(d.Host) && has(TLSIstioMutual) {
		out = append(out, "ISTIO_MUTUAL: holds with a server whose identity the rule or the ServiceEntry names (subjectAltNames: spiffe://…, or an endpoint's serviceAccount); without any, it is spoken with by nobody")
	}
	if !IsService(d.Host) {
		out = append(out, "it holds at the ports of a ServiceEntry for "+d.Host+"; without one, connections pass as they are")
		if has(TLSSimple, TLSMutual) {
			out = append(out, "ports that the ServiceEntry declares as TLS or HTTPS are left as they are: there, clients speak TLS themselves")
		}
	}
	return out
}

// DestinationRules returns every DestinationRule.
func (s *Snapshot) DestinationRules() iter.Seq[*DestinationRule] {
	return DestinationRules.all(s, byID.Name)
}

// DestinationRulesIn returns a namespace's DestinationRules.
func (s *Snapshot) DestinationRulesIn(ns string) iter.Seq[*DestinationRule] {
	return DestinationRules.all(s, byNamespace.Name, ns)
}

// DestinationRulesFor returns the DestinationRules of a host.
func (s *Snapshot) DestinationRulesFor(host string) iter.Seq[*DestinationRule] {
	return DestinationRules.all(s, "host", host)
}

// DestinationRulesExportedTo returns the DestinationRules that name a namespace as one for whose workloads they are.
func (s *Snapshot) DestinationRulesExportedTo(ns string) iter.Seq[*DestinationRule] {
	return DestinationRules.all(s, "exported", ns)
}
