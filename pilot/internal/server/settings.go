// Package server puts Pilot together: its settings, its parts, and the goroutines that run them.
package server

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/bulwark-mesh/bulwark/pilot/inject"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/proxyprotocol"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Settings of Pilot; see config.Command for how they are given.
type Settings struct {
	TrustDomain        string   `mapstructure:"trustDomain" usage:"SPIFFE trust domain of the mesh"`
	TrustDomainAliases []string `mapstructure:"trust-domain-aliases" usage:"other trust domains whose identities are the mesh's own, as while it changes its name"`
	TrustedProxies     int      `mapstructure:"trusted-proxies" usage:"proxies before workloads whose word in X-Forwarded-For counts for remote addresses; with none, the address of the TCP peer does"`
	LoadBalancers      []string `mapstructure:"load-balancers" usage:"networks of load balancers whose word by the PROXY protocol counts for remote addresses, at ports of pods that ask for it by annotation bulwark.dev/proxy-protocol"`
	KeyServerHosts     []string `mapstructure:"key-server-hosts" usage:"hosts of key servers (or *.SUFFIX) that may have private addresses, as within the cluster; see RequestAuthentication"`
	ExtensionProviders string   `mapstructure:"extension-providers" usage:"external authorizers, as a list in JSON with the names and fields of Istio's meshConfig.extensionProviders"`
	RootNamespace      string   `mapstructure:"rootNamespace" usage:"namespace whose policies hold mesh-wide"`
	ClusterName        string   `mapstructure:"clusterName" usage:"name of the cluster in metrics"`
	Kubeconfig         string   `mapstructure:"kubeconfig" usage:"kubeconfig file; empty inside a cluster"`
	Citadel            string   `mapstructure:"citadel" usage:"address of Citadel's CSR service"`
	TokenFile          string   `mapstructure:"tokenFile" usage:"projected token for Citadel"`
	LogLevel           string   `mapstructure:"logLevel" usage:"debug, info, warn or error"`
	MaxProxies         int      `mapstructure:"maxProxies" usage:"proxies served at once; more are sent elsewhere"`
	Listen             Listen   `mapstructure:"listen"`
	Inject             Inject   `mapstructure:"inject"`
}

// Listen has the addresses Pilot listens on.
type Listen struct {
	XDS        string `mapstructure:"xds" usage:"delta xDS, mutual TLS"`
	Webhook    string `mapstructure:"webhook" usage:"webhooks, HTTPS"`
	Monitoring string `mapstructure:"monitoring" usage:"metrics and health, HTTP"`
	Operator   string `mapstructure:"operator" usage:"operator API, HTTPS"`
}

// Inject says what pods are given.
type Inject struct {
	ProxyImage    string `mapstructure:"proxyImage" usage:"image of the proxy (Envoy)"`
	AgentImage    string `mapstructure:"agentImage" usage:"image of the init container of redirection"`
	PullPolicy    string `mapstructure:"pullPolicy" usage:"imagePullPolicy of both"`
	CPU           string `mapstructure:"cpu" usage:"CPU a proxy requests"`
	CPULimit      string `mapstructure:"cpuLimit" usage:"CPU a proxy may use"`
	Memory        string `mapstructure:"memory" usage:"memory a proxy requests"`
	MemoryLimit   string `mapstructure:"memoryLimit" usage:"memory a proxy may use"`
	ProxyLogLevel string `mapstructure:"proxyLogLevel" usage:"log level of Envoy"`
	Workers       int    `mapstructure:"workers" usage:"worker threads of a proxy"`
	CNI           bool   `mapstructure:"cni" usage:"the nodes' CNI plugin redirects traffic, and the init container proves it; otherwise the init container redirects, which takes NET_ADMIN"`
}

// Defaults suit an installation by meshctl.
func Defaults() Settings {
	return Settings{
		TrustDomain: mesh.DefaultTrustDomain, RootNamespace: mesh.Namespace, ClusterName: "Kubernetes", LogLevel: "info", MaxProxies: 5000,
		Citadel: fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.CitadelAccount), mesh.CSRPort),
		Listen: Listen{
			XDS: port(mesh.XDSPort), Webhook: port(mesh.WebhookPort), Monitoring: port(mesh.MonitoringPort), Operator: port(mesh.OperatorPort)},
		Inject: Inject{
			ProxyImage: "bulwark/proxy:dev", AgentImage: "bulwark/agent:dev", PullPolicy: "IfNotPresent",
			CPU: inject.Defaults.ProxyCPU, CPULimit: inject.Defaults.ProxyCPUMax, Memory: inject.Defaults.ProxyMemory, MemoryLimit: inject.Defaults.ProxyMemoryMax,
			ProxyLogLevel: inject.Defaults.ProxyLogLevel, Workers: inject.Defaults.ProxyWorkers},
	}
}

// maxTrustedProxies is more than anybody has one behind the other.
const maxTrustedProxies = 16

func port(n int) string { return fmt.Sprintf(":%d", n) }

// Validate implements config.Validator.
func (s Settings) Validate() error {
	var errs []error
	if s.TrustDomain == "" {
		errs = append(errs, errors.New("trustDomain is empty"))
	}
	for _, td := range s.TrustDomainAliases {
		if _, err := spiffe.New(td, "n", "s"); err != nil {
			errs = append(errs, fmt.Errorf("trust-domain-aliases: %w", err))
		}
	}
	if s.TrustedProxies < 0 || s.TrustedProxies > maxTrustedProxies {
		errs = append(errs, fmt.Errorf("trusted-proxies %d is outside 0 to %d", s.TrustedProxies, maxTrustedProxies))
	}
	if _, err := proxyprotocol.Networks(s.LoadBalancers); err != nil {
		errs = append(errs, fmt.Errorf("load-balancers: %w", err))
	}
	if _, err := authorizer.Parse(s.ExtensionProviders); err != nil {
		errs = append(errs, err)
	}
	for _, host := range s.KeyServerHosts {
		if u, err := url.Parse("https://" + strings.TrimPrefix(host, "*.")); err != nil || u.Host != strings.TrimPrefix(host, "*.") || u.Port() != "" || host == "" {
			errs = append(errs, fmt.Errorf("key-server-hosts: %q is not the name or the address of a host", host))
		}
	}
	if s.RootNamespace == "" {
		errs = append(errs, errors.New("rootNamespace is empty"))
	}
	if s.MaxProxies <= 0 {
		errs = append(errs, errors.New("maxProxies must be positive"))
	}
	if s.Inject.ProxyImage == "" || s.Inject.AgentImage == "" {
		errs = append(errs, errors.New("inject.proxyImage and inject.agentImage must be set"))
	}
	if s.Inject.Workers <= 0 {
		errs = append(errs, errors.New("inject.workers must be positive"))
	}
	for name, q := range map[string]string{"inject.cpu": s.Inject.CPU, "inject.cpuLimit": s.Inject.CPULimit, "inject.memory": s.Inject.Memory, "inject.memoryLimit": s.Inject.MemoryLimit} {
		if _, err := resource.ParseQuantity(q); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", name, q, err))
		}
	}
	return errors.Join(errs...)
}
