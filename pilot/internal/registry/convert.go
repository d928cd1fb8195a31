package registry

import (
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// FromService keeps of a Service what the mesh uses, or returns nil for one it has nothing to do with.
func FromService(s *core.Service) *Service {
	if s.Spec.Type == core.ServiceTypeExternalName {
		return nil
	}
	out := &Service{ID: s.Namespace + "/" + s.Name, Namespace: s.Namespace, Name: s.Name, Selector: s.Spec.Selector, Created: s.CreationTimestamp.UTC()}
	for _, ip := range s.Spec.ClusterIPs {
		if ip == core.ClusterIPNone {
			out.Headless = true
		} else {
			out.ClusterIPs = append(out.ClusterIPs, ip)
		}
	}
	for _, p := range s.Spec.Ports {
		if p.Protocol != core.ProtocolTCP && p.Protocol != "" {
			continue
		}
		number := uint32(p.Port)
		port := ServicePort{Name: p.Name, Number: number, Target: number}
		if p.TargetPort.Type == intstr.String {
			port.Target, port.TargetName = 0, p.TargetPort.StrVal
		} else if p.TargetPort.IntVal != 0 {
			port.Target = uint32(p.TargetPort.IntVal)
		}
		appProtocol := ""
		if p.AppProtocol != nil {
			appProtocol = *p.AppProtocol
		}
		port.Protocol, port.ServerFirst = ProtocolOf(appProtocol, p.Name, number), ServerFirst(appProtocol, p.Name, number)
		out.Ports = append(out.Ports, port)
	}
	return out
}

// FromSlice keeps of an EndpointSlice what the mesh uses.
func FromSlice(s *discovery.EndpointSlice) *Slice {
	service := s.Labels[discovery.LabelServiceName]
	if service == "" || s.AddressType == discovery.AddressTypeFQDN {
		return nil
	}
	out := &Slice{ID: s.Namespace + "/" + s.Name, Namespace: s.Namespace, Name: s.Name, ServiceID: s.Namespace + "/" + service}
	for _, p := range s.Ports {
		if p.Port == nil || p.Protocol != nil && *p.Protocol != core.ProtocolTCP {
			continue
		}
		port := SlicePort{Number: uint32(*p.Port)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		out.Ports = append(out.Ports, port)
	}
	for _, e := range s.Endpoints {
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		for _, a := range e.Addresses {
			out.Endpoints = append(out.Endpoints, Endpoint{a, ready})
			out.Addresses = append(out.Addresses, a)
		}
	}
	slices.SortFunc(out.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.Address, b.Address) })
	return out
}

// FromPod keeps of a pod what the mesh uses, or returns nil for one that has ended.
func FromPod(p *core.Pod) *Pod {
	if p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed {
		return nil
	}
	out := &Pod{
		ID: p.Namespace + "/" + p.Name, Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), IP: p.Status.PodIP, Node: p.Spec.NodeName,
		ServiceAccount: p.Spec.ServiceAccountName, Labels: p.Labels, HostNetwork: p.Spec.HostNetwork,
		Proxied: p.Labels[istiocompat.TLSModeLabel] == istiocompat.TLSModeMutual && !p.Spec.HostNetwork,
		Probes:  p.Annotations[mesh.ProbesAnnotation],
	}
	if p.Annotations[IdentityLabel] == string(BySecret) {
		out.Delivery = BySecret
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Name == mesh.ProxyContainer {
			continue
		}
		for _, port := range c.Ports {
			if port.Protocol == core.ProtocolTCP || port.Protocol == "" {
				out.Ports = append(out.Ports, PodPort{port.Name, uint32(port.ContainerPort)})
			}
		}
	}
	return out
}

// FromNamespace keeps of a namespace what the mesh uses.
func FromNamespace(n *core.Namespace) *Namespace { return &Namespace{ID: n.Name, Labels: n.Labels} }

func metaOf(u meta.Object) authz.Meta {
	return authz.Meta{Namespace: u.GetNamespace(), Name: u.GetName(), Created: u.GetCreationTimestamp().UTC()}
}

// decodeSpec reads the spec of a custom resource strictly: a field that is not understood might have restricted something.
func decodeSpec(u *unstructured.Unstructured, into proto.Message) error {
	spec, ok := u.Object["spec"]
	if !ok || spec == nil {
		return nil
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(raw, into); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), "\u00a0", " ")) // the library varies its spaces on purpose
	}
	return nil
}

// selectorOf finds the selector of a resource that cannot be decoded, so that its failing closed hits those it was for.
func selectorOf(u *unstructured.Unstructured) map[string]string {
	labels, _, err := unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
	if err != nil {
		return nil
	}
	return labels
}

// FromAuthorizationPolicy compiles a policy. One that cannot be decoded denies everything to those it selects.
func FromAuthorizationPolicy(u *unstructured.Unstructured, o authz.Options) *Policy {
	out := &Policy{ID: u.GetNamespace() + "/" + u.GetName(), Namespace: u.GetNamespace(), Generation: u.GetGeneration()}
	var spec security.AuthorizationPolicy
	if err := decodeSpec(u, &spec); err != nil {
		out.Policy = authz.Policy{Meta: metaOf(u), Action: authz.Deny, Selector: selectorOf(u), Rules: []authz.Rule{{}}}
		out.DryRun = false
		out.Problems = []authz.Problem{{Field: "spec", Reason: err.Error()}}
		return out
	}
	meta := metaOf(u)
	value, set := u.GetAnnotations()[istiocompat.DryRunAnnotation]
	dry, problems := authz.DryRun(value, set)
	meta.DryRun = dry
	out.Policy, out.Problems = authz.FromAuthorizationPolicy(meta, &spec, o)
	out.Problems = append(problems, out.Problems...)
	return out
}

// FromPeerAuthentication compiles a policy. One that cannot be decoded is STRICT.
func FromPeerAuthentication(u *unstructured.Unstructured, o authz.Options) *PeerAuth {
	out := &PeerAuth{ID: u.GetNamespace() + "/" + u.GetName(), Namespace: u.GetNamespace(), Generation: u.GetGeneration()}
	var spec security.PeerAuthentication
	if err := decodeSpec(u, &spec); err != nil {
		out.PeerPolicy = authz.PeerPolicy{Meta: metaOf(u), Selector: selectorOf(u), Mode: authz.Strict}
		out.Problems = []authz.Problem{{Field: "spec", Reason: err.Error()}}
		return out
	}
	out.PeerPolicy, out.Problems = authz.FromPeerAuthentication(metaOf(u), &spec, o)
	return out
}

// FromRequestAuthentication notes a RequestAuthentication, which cannot be enforced yet.
func FromRequestAuthentication(u *unstructured.Unstructured) *JWTRule {
	return &JWTRule{
		ID: u.GetNamespace() + "/" + u.GetName(), Namespace: u.GetNamespace(), Selector: selectorOf(u), Generation: u.GetGeneration(),
		Problems: []authz.Problem{{Field: "spec.jwtRules", Reason: "JWTs are not verified yet"}},
	}
}
