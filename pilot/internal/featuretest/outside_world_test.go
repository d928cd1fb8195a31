package featuretest

import (
	"fmt"
	"slices"
	"strings"
)

// What is outside of the mesh, in the random world: few names and addresses, some of which are those of the mesh.
var (
	outsideHosts     = []string{"a.example", "b.example", "*.example", "s0.shop.svc.cluster.local"}
	outsideAddresses = []string{"198.51.100.1", "198.51.100.2", "10.0.0.1", "10.96.0.1", "10.0.0.9", "2001:db8::9", "198.51.100.0/24", "198.51.0.0/16",
		"10.0.0.0/8", "10.0.0.0/30", "10.96.0.0/16", "2001:db8::/32"}
	outsidePorts = []string{"{number: 80, name: http, protocol: HTTP}", "{number: 81, name: h2, protocol: GRPC, targetPort: 82}", "{number: 443, name: tls, protocol: TLS}",
		"{number: 5432, name: tcp, protocol: TCP}"}
	ruledHosts = append([]string{"s1.shop.svc.cluster.local", "s0.bank.svc.cluster.local", "s0.shop.svc.cluster.local"}, outsideHosts...)
	ways       = []string{"mode: SIMPLE", "mode: SIMPLE, sni: c.example", "mode: DISABLE", "mode: ISTIO_MUTUAL", "mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://cluster.local/ns/shop/sa/one]",
		"mode: MUTUAL, clientCertificate: /cert.pem, privateKey: /key.pem, caCertificates: /ca.pem", "mode: SIMPLE, insecureSkipVerify: true"}
)

func (w *world) entry(namespace, name string) {
	if w.chance(35) {
		w.remove("ServiceEntry", namespace, name)
		return
	}
	host, more := one(w, outsideHosts), ""
	if !strings.HasPrefix(host, "*") {
		more = one(w, []string{"resolution: DNS,", "resolution: DNS_ROUND_ROBIN,", "resolution: STATIC, endpoints: [{address: 198.51.100.7}],", "resolution: NONE,"})
	}
	if w.chance(50) && !strings.HasPrefix(host, "*") {
		more += fmt.Sprintf("addresses: [%s],", quoted(w.some(outsideAddresses, 40)))
	}
	if w.chance(30) {
		more += one(w, []string{"location: MESH_INTERNAL, subjectAltNames: [spiffe://cluster.local/ns/shop/sa/one],", "location: MESH_INTERNAL, subjectAltNames: [spiffe://partner.example/x],", "location: MESH_INTERNAL,"})
	}
	w.set("ServiceEntry", namespace, name, w.created(), fmt.Sprintf("spec: {hosts: [%q], %s ports: [%s], exportTo: [%s]}",
		host, more, strings.Join(w.some(outsidePorts, 60), ", "), w.exported()))
}

// exported is to whom, mostly as one may say it.
func (w *world) exported() string {
	return quoted(slices.Concat(w.some([]string{"."}, 40), w.some([]string{"*", "shop"}, 10)))
}

func (w *world) rule(namespace, name string) {
	if w.chance(35) {
		w.remove("DestinationRule", namespace, name)
		return
	}
	ports := ""
	if w.chance(40) {
		ports = fmt.Sprintf(", portLevelSettings: [{port: {number: 80}, tls: {%s}}]", one(w, ways))
	}
	w.set("DestinationRule", namespace, name, w.created(), fmt.Sprintf("spec: {host: %q, trafficPolicy: {tls: {%s}%s}, exportTo: [%s]}",
		one(w, ruledHosts), one(w, ways), ports, quoted(w.some([]string{"*", ".", "bank", "~"}, 20))))
}
