package registry_test

import (
	"reflect"
	"testing"

	core "k8s.io/api/core/v1"
)

// TestEveryFieldOfAServiceIsAccountedFor fails when Kubernetes gives Services a field of which nobody has said what becomes of it in the mesh, so that none is
// without effect in silence. docs/services.md says the same to users.
func TestEveryFieldOfAServiceIsAccountedFor(t *testing.T) {
	const (
		honoured = "Pilot reads it, or what Kubernetes makes of it"
		advised  = "partly honoured, and its author is told by adviseService"
		others   = "of connections that no proxy takes, as of node ports and load balancers: kube-proxy's and the cloud's affair, as without proxies"
	)
	fields := map[string]string{
		"Ports":                         advised, // of which other than TCP are told of
		"Selector":                      honoured,
		"ClusterIP":                     honoured, // is the first of ClusterIPs
		"ClusterIPs":                    honoured,
		"Type":                          honoured,
		"ExternalIPs":                   others,
		"SessionAffinity":               honoured,
		"LoadBalancerIP":                others,
		"LoadBalancerSourceRanges":      others,
		"ExternalName":                  honoured, // by DNS
		"ExternalTrafficPolicy":         others,
		"HealthCheckNodePort":           others,
		"PublishNotReadyAddresses":      honoured, // in EndpointSlices
		"SessionAffinityConfig":         advised,
		"IPFamilyPolicy":                honoured, // in ClusterIPs
		"IPFamilies":                    honoured, // in ClusterIPs
		"AllocateLoadBalancerNodePorts": others,
		"LoadBalancerClass":             others,
		"InternalTrafficPolicy":         honoured,
		"TrafficDistribution":           honoured, // in the hints of EndpointSlices
	}
	spec := reflect.TypeFor[core.ServiceSpec]()
	for i := range spec.NumField() {
		if name := spec.Field(i).Name; fields[name] == "" {
			t.Errorf("what becomes of spec.%s in the mesh?", name)
		} else {
			delete(fields, name)
		}
	}
	for name := range fields {
		t.Errorf("Services have no spec.%s", name)
	}
}
