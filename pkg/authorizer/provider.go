// Package authorizer has the external authorizers of an installation: servers that policies of action CUSTOM ask, under the names and with the fields of Istio's
// mesh configuration (extensionProviders).
package authorizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	istiomesh "istio.io/api/mesh/v1alpha1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// MaxBody is the most that a provider may be shown of a request's body, in bytes.
const MaxBody = 1 << 20

// Bounds of the other settings.
const (
	maxProviders   = 32
	maxHeaders     = 64
	defaultTimeout = 10 * time.Second
	maxTimeout     = 10 * time.Minute
)

// Provider is an external authorizer.
type Provider struct {
	Name    string
	GRPC    bool   // Envoy's ext_authz over gRPC, else over HTTP
	Service string // namespace/name
	Port    uint32 // of the Service
	Timeout time.Duration
	// FailOpen lets requests pass whose authorizer does not answer. StatusOnError is what others of these get.
	FailOpen      bool
	StatusOnError uint32
	Body          *Body // of requests, as far as it is shown; nil: it is not

	// Of HTTP alone. Headers are names, of which one * at the beginning or the end stands for anything.
	PathPrefix        string
	RequestHeaders    []string          // shown beside those that always are
	AdditionalHeaders map[string]string // said beside the request's own
	UpstreamOnAllow   []string          // of the authorizer's answer, which the application gets
	DownstreamOnAllow []string          // which the client gets
	DownstreamOnDeny  []string
}

// Body says how much of a request's body an authorizer is shown.
type Body struct {
	MaxBytes uint32
	Partial  bool // longer ones are shown in part; else they are answered with 413
	AsBytes  bool // of gRPC: not as text
}

// Parse reads a list of providers in JSON.
func Parse(text string) ([]Provider, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("extensionProviders: it is not a list: %w", err)
	}
	if len(list) > maxProviders {
		return nil, fmt.Errorf("extensionProviders: %d, at most %d", len(list), maxProviders)
	}
	var out []Provider
	for i, raw := range list {
		p, err := parse(raw)
		if err != nil {
			return nil, fmt.Errorf("extensionProviders[%d]: %w", i, err)
		}
		if slices.ContainsFunc(out, func(o Provider) bool { return o.Name == p.Name }) {
			return nil, fmt.Errorf("extensionProviders[%d]: there is another one with the name %q", i, p.Name)
		}
		out = append(out, p)
	}
	return out, nil
}

// settings are what both kinds have.
type settings interface {
	GetService() string
	GetPort() uint32
	GetFailOpen() bool
	GetStatusOnError() string
	GetClearRouteCache() bool
	GetIncludeRequestBodyInCheck() *istiomesh.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody
}

func parse(raw json.RawMessage) (Provider, error) {
	var given istiomesh.MeshConfig_ExtensionProvider
	if err := protojson.Unmarshal(raw, &given); err != nil {
		return Provider{}, errors.New(strings.ReplaceAll(err.Error(), "\u00a0", " "))
	}
	p := Provider{Name: given.GetName(), Timeout: defaultTimeout, StatusOnError: 403}
	if reasons := validation.IsDNS1123Subdomain(p.Name); len(reasons) > 0 {
		return p, fmt.Errorf("name %q: %s", p.Name, reasons[0])
	}
	var of settings
	switch {
	case given.GetEnvoyExtAuthzGrpc() != nil:
		g := given.GetEnvoyExtAuthzGrpc()
		of, p.GRPC = g, true
		if g.GetTimeout() != nil {
			p.Timeout = g.GetTimeout().AsDuration()
		}
	case given.GetEnvoyExtAuthzHttp() != nil:
		h := given.GetEnvoyExtAuthzHttp()
		of = h
		if h.GetTimeout() != nil {
			p.Timeout = h.GetTimeout().AsDuration()
		}
		p.PathPrefix, p.AdditionalHeaders = h.GetPathPrefix(), h.GetIncludeAdditionalHeadersInCheck()
		//lint:ignore SA1019 who still writes the former name means it
		former := h.GetIncludeHeadersInCheck()
		p.RequestHeaders = append(h.GetIncludeRequestHeadersInCheck(), former...)
		p.UpstreamOnAllow, p.DownstreamOnAllow, p.DownstreamOnDeny = h.GetHeadersToUpstreamOnAllow(), h.GetHeadersToDownstreamOnAllow(), h.GetHeadersToDownstreamOnDeny()
	default:
		return p, fmt.Errorf("%s is neither envoyExtAuthzGrpc nor envoyExtAuthzHttp", p.Name)
	}
	return p, p.read(of)
}

func (p *Provider) read(of settings) (err error) {
	p.Port, p.FailOpen = of.GetPort(), of.GetFailOpen()
	if p.Service, err = serviceOf(of.GetService()); err != nil {
		return fmt.Errorf("%s: service %w", p.Name, err)
	}
	if s := of.GetStatusOnError(); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n < 400 || n > 599 {
			return fmt.Errorf("%s: statusOnError %q is not a status of HTTP from 400 to 599", p.Name, s)
		}
		p.StatusOnError = uint32(n)
	}
	if b := of.GetIncludeRequestBodyInCheck(); b != nil {
		p.Body = &Body{b.GetMaxRequestBytes(), b.GetAllowPartialMessage(), b.GetPackAsBytes()}
	}
	switch {
	case p.Port == 0 || p.Port > 65535:
		return fmt.Errorf("%s: port %d is none", p.Name, p.Port)
	case p.Timeout < time.Millisecond || p.Timeout > maxTimeout:
		return fmt.Errorf("%s: timeout %s is outside 1ms to %s", p.Name, p.Timeout, maxTimeout)
	case p.Body != nil && (p.Body.MaxBytes == 0 || p.Body.MaxBytes > MaxBody):
		return fmt.Errorf("%s: includeRequestBodyInCheck.maxRequestBytes %d is outside 1 to %d", p.Name, p.Body.MaxBytes, MaxBody)
	case of.GetClearRouteCache():
		return fmt.Errorf("%s: clearRouteCache has no effect: a workload's requests have one route", p.Name)
	case p.PathPrefix != "" && (!strings.HasPrefix(p.PathPrefix, "/") || strings.ContainsAny(p.PathPrefix, "?# \t\r\n")):
		return fmt.Errorf("%s: pathPrefix %q is not the beginning of a path", p.Name, p.PathPrefix)
	}
	for field, names := range map[string][]string{"includeRequestHeadersInCheck": p.RequestHeaders, "headersToUpstreamOnAllow": p.UpstreamOnAllow,
		"headersToDownstreamOnAllow": p.DownstreamOnAllow, "headersToDownstreamOnDeny": p.DownstreamOnDeny} {
		if len(names) > maxHeaders {
			return fmt.Errorf("%s: %s: %d names, at most %d", p.Name, field, len(names), maxHeaders)
		}
		for _, name := range names {
			if !pattern.MatchString(name) {
				return fmt.Errorf("%s: %s: %q is not the name of a header, with one * at the beginning or at the end if any", p.Name, field, name)
			}
		}
	}
	for name, value := range p.AdditionalHeaders {
		if !token.MatchString(name) || strings.ContainsAny(value, "\r\n\x00") {
			return fmt.Errorf("%s: includeAdditionalHeadersInCheck: %q is not a header", p.Name, name)
		}
	}
	return nil
}

// Header names (RFC 9110, section 5.6.2), and patterns of them.
var (
	token   = regexp.MustCompile("^[0-9A-Za-z!#$%&'+.^_`|~-]{1,256}$")
	pattern = regexp.MustCompile("^(?:\\*|\\*?[0-9A-Za-z!#$%&'+.^_`|~-]{1,256}|[0-9A-Za-z!#$%&'+.^_`|~-]{1,256}\\*)$")
)

// serviceOf reads [<namespace>/]<host>, of a Service of the cluster.
func serviceOf(text string) (string, error) {
	namespace, host, both := strings.Cut(text, "/")
	if !both {
		namespace, host = "", text
	}
	inner, _ := strings.CutSuffix(host, "."+mesh.ClusterDomain)
	inner, ok := strings.CutSuffix(inner, ".svc")
	name, of, dotted := strings.Cut(inner, ".")
	if !ok || !dotted || strings.Contains(of, ".") || namespace != "" && namespace != of || len(validation.IsDNS1035Label(name)) > 0 || len(validation.IsDNS1123Label(of)) > 0 {
		return "", fmt.Errorf("%q is not <name>.<namespace>.svc.%s, a Service of the cluster", text, mesh.ClusterDomain)
	}
	return of + "/" + name, nil
}
