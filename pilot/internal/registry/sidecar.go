package registry

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	istio "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Sidecars are Istio's Sidecars. Of one, the hosts of its egress are enforced, which services the workloads that it selects may know, and the mode of its
// outboundTrafficPolicy: whether they may call what has no name.
var Sidecars = &KindOf[Sidecar]{
	name:     "sidecar",
	resource: Resource{GroupVersionResource: istioNetworking.WithResource("sidecars"), Kind: "Sidecar"},
	source:   custom(makeSidecar),
	indexes:  []*memdb.IndexSchema{byNamespace},
	judge: func(s *Sidecar) Verdict {
		v := verdictOn(s.ID, s.Generation, s.Ignored, s.Problems)
		v.Partly = s.Partly
		return v
	},
	advise: adviseSidecar,
}

// Sidecar says which services workloads may know.
type Sidecar struct {
	ID              string
	Namespace, Name string
	Selector        map[string]string
	Egress          []EgressHost // of all its listeners; nil: not declared. With none of them, no service may be known.
	Outbound        Outbound
	Created         time.Time
	Ignored         bool // it selects what no workload is
	Generation      int64
	Problems        []authz.Problem
	Partly          bool // some of it cannot be enforced, and the rest is
}

// Outbound says where the workloads of a Sidecar may connect; empty: it does not say.
type Outbound string

// The modes, by Istio's names.
const (
	AllowAny     Outbound = "ALLOW_ANY"
	RegistryOnly Outbound = "REGISTRY_ONLY" // only to Services, and to what the ServiceEntries name that are among the hosts of its egress
)

// Silent reports whether it says nothing, so that its workloads are as without it.
func (s *Sidecar) Silent() bool { return s.Egress == nil && s.Outbound == "" }

// Confines reports whether it keeps its workloads from all that neither a Service nor a ServiceEntry names. Nil is no Sidecar, which keeps them from nothing.
func (s *Sidecar) Confines() bool { return s != nil && s.Outbound == RegistryOnly }

// EgressHost names services that may be known or, where the namespace begins with "~", that may not, whatever else names them.
type EgressHost struct {
	Namespace string // a name, "." for the workload's own, "*" for all; after "~" also nothing, for all
	Host      string // of the services: "*", or a whole DNS name, the first part of which may be "*"
}

// Excludes reports whether the services may not be known.
func (h EgressHost) Excludes() bool { return strings.HasPrefix(h.Namespace, "~") }

// MaxEgressHosts bounds the hosts of a Sidecar, which are compared with every service.
const MaxEgressHosts = 1000

// makeSidecar reads a Sidecar. One that cannot be decoded lets its workloads know no service. Of one with fields that are unknown or not
// enforced, the hosts hold; and of one with hosts that cannot be understood, the others.
func makeSidecar(u *unstructured.Unstructured, _ authz.Options) *Sidecar {
	out := &Sidecar{ID: IDOf(u), Namespace: u.GetNamespace(), Name: u.GetName(), Generation: u.GetGeneration(), Created: u.GetCreationTimestamp().UTC()}
	spec := &istio.Sidecar{}
	unread := decodeSpec(u, spec)
	if unread != nil && !decodeKnown(u, spec) {
		out.Problems = unread
		out.Selector, _, _ = unstructured.NestedStringMap(u.Object, "spec", "workloadSelector", "labels")
		out.Egress, out.Outbound = []EgressHost{}, unreadOutbound(u)
		return out
	}
	out.Selector = spec.GetWorkloadSelector().GetLabels()
	impossible := authz.CheckLabels("spec.workloadSelector.labels", out.Selector)
	out.Ignored = len(impossible) > 0
	notEnforced := notTriedOut(u)
	if spec.WorkloadSelector != nil && len(out.Selector) == 0 {
		notEnforced = append(notEnforced, authz.Problem{Field: "spec.workloadSelector", Reason: "has no labels; leave it out to select every workload"})
	}
	notEnforced = append(notEnforced, fieldsBut("spec", spec, notOfSidecars, "workloadSelector", "egress", "outboundTrafficPolicy")...)
	if o := spec.OutboundTrafficPolicy; o != nil {
		notEnforced = append(notEnforced, fieldsBut("spec.outboundTrafficPolicy", o, notOfSidecars, "mode")...)
		switch o.Mode {
		case istio.OutboundTrafficPolicy_ALLOW_ANY:
			out.Outbound = AllowAny
		case istio.OutboundTrafficPolicy_REGISTRY_ONLY:
			out.Outbound = RegistryOnly
		default:
			out.Outbound = RegistryOnly
			notEnforced = append(notEnforced, authz.Problem{Field: "spec.outboundTrafficPolicy.mode", Reason: fmt.Sprintf("%d is no mode", o.Mode)})
		}
	}
	for i, listener := range spec.Egress {
		notEnforced = append(notEnforced, fieldsBut(fmt.Sprintf("spec.egress[%d]", i), listener, notOfSidecars, "hosts")...)
	}
	var misread []authz.Problem
	out.Egress, misread = egressHosts(spec)
	out.Problems = slices.Concat(unread, impossible, notEnforced, misread)
	out.Partly = len(out.Problems) > 0
	return out
}

const notOfSidecars = "is not enforced; of a Sidecar only workloadSelector, the hosts of egress and the mode of outboundTrafficPolicy are"

// unreadOutbound is what a Sidecar that cannot be decoded may have wanted of connections to what has no name: whatever stands there but the one mode that lets them be
// keeps its workloads from them.
func unreadOutbound(u *unstructured.Unstructured) Outbound {
	policy, found, _ := unstructured.NestedFieldNoCopy(u.Object, "spec", "outboundTrafficPolicy")
	if !found {
		return ""
	}
	if fields, _ := policy.(map[string]any); fields["mode"] == string(AllowAny) {
		return AllowAny
	}
	return RegistryOnly
}

// fieldsBut are the problems of a message that sets other fields than those that are enforced.
func fieldsBut(at string, m proto.Message, reason string, enforced ...string) []authz.Problem {
	var out []authz.Problem
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(enforced, f.JSONName()) {
			out = append(out, authz.Problem{Field: at + "." + f.JSONName(), Reason: reason})
		}
		return true
	})
	slices.SortFunc(out, func(a, b authz.Problem) int { return strings.Compare(a.Field, b.Field) })
	return out
}

// egressHosts reads the hosts of all listeners, with what of them cannot be understood. That includes nothing and excludes all.
func egressHosts(spec *istio.Sidecar) ([]EgressHost, []authz.Problem) {
	if len(spec.Egress) == 0 {
		return nil, nil
	}
	hosts, problems := []EgressHost{}, []authz.Problem(nil)
	for i, listener := range spec.Egress {
		field := fmt.Sprintf("spec.egress[%d].hosts", i)
		if len(listener.GetHosts()) == 0 {
			problems = append(problems, authz.Problem{Field: field, Reason: `there are none; write "~/*" if no service may be known`})
		}
		for j, text := range listener.GetHosts() {
			if len(hosts) == MaxEgressHosts {
				return []EgressHost{}, append(problems, authz.Problem{Field: "spec.egress", Reason: fmt.Sprintf("more than %d hosts", MaxEgressHosts)})
			}
			namespace, host, _ := strings.Cut(text, "/")
			h := EgressHost{namespace, host}
			if reason := notEgressHost(h); reason != "" {
				problems = append(problems, authz.Problem{Field: fmt.Sprintf("%s[%d]", field, j), Reason: fmt.Sprintf("%q %s", text, reason)})
				if !h.Excludes() {
					continue
				}
				h = EgressHost{"~", "*"}
			}
			hosts = append(hosts, h)
		}
	}
	return hosts, problems
}

// notEgressHost says why a host cannot be understood; it returns nothing if it can.
func notEgressHost(h EgressHost) string {
	namespace := strings.TrimPrefix(h.Namespace, "~")
	everyone := h.Namespace == "~" || namespace == "*" || namespace == "."
	switch {
	case h.Host == "" || h.Namespace == "":
		return `is not <namespace>/<DNS name>, such as "./*" or "shop/web.shop.svc.` + mesh.ClusterDomain + `"`
	case !everyone && len(validation.IsDNS1123Label(namespace)) > 0:
		return "does not begin with the name of a namespace, nor with one of . * ~"
	case h.Host == "*":
		return ""
	case !strings.Contains(h.Host, "."):
		return "does not name services in full, such as web.shop.svc." + mesh.ClusterDomain
	case len(validation.IsDNS1123Subdomain(h.Host)) > 0 && len(validation.IsWildcardDNS1123Subdomain(h.Host)) > 0:
		return "does not end with a DNS name, which is in lower case and may have * for its first part"
	}
	return ""
}

// adviseSidecar warns of hosts that are no service's, which only those need who may connect to nothing else.
func adviseSidecar(s *Sidecar) []string {
	if s.Confines() {
		return nil
	}
	const services = ".svc." + mesh.ClusterDomain
	var out []string
	for _, h := range s.Egress {
		end, wildcard := strings.CutPrefix(h.Host, "*")
		if !strings.HasSuffix(h.Host, services) && !(wildcard && strings.HasSuffix(services, end)) {
			out = append(out, fmt.Sprintf("%s/%s names no service of the mesh: their names end with %s (what is outside of the mesh is restricted by outboundTrafficPolicy: {mode: REGISTRY_ONLY} alone)",
				h.Namespace, h.Host, services))
		}
	}
	return out
}

// Sidecar returns a Sidecar, or nil.
func (s *Snapshot) Sidecar(id string) *Sidecar { return Sidecars.one(s, id) }

// SidecarsIn returns a namespace's Sidecars.
func (s *Snapshot) SidecarsIn(ns string) iter.Seq[*Sidecar] {
	return Sidecars.all(s, byNamespace.Name, ns)
}
