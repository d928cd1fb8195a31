package registry

import (
	"fmt"
	"iter"
	"slices"

	"github.com/hashicorp/go-memdb"
	istio "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// RequestAuths are the RequestAuthentications.
var RequestAuths = &KindOf[RequestAuth]{
	name:     "requestAuthentication",
	resource: Resource{GroupVersionResource: security.WithResource("requestauthentications"), Kind: "RequestAuthentication"},
	source:   custom(makeRequestAuth),
	indexes:  []*memdb.IndexSchema{bySelector, byEach("source", "Sources")},
	judge: func(r *RequestAuth) Verdict {
		return verdictOn(r.ID, r.Generation, r.Ignored || len(r.Rules) == 0, r.Problems)
	},
	advise: adviseRequestAuth,
}

// RequestAuth is a RequestAuthentication, compiled, with what of it cannot be enforced. What selects workloads and has problems is not to be relied on: all requests
// to them are denied.
type RequestAuth struct {
	ID        string
	Namespace string
	jwt.Policy
	Sources    []string // of keys, as KeySets know them
	Generation int64
	Problems   []authz.Problem
}

func makeRequestAuth(u *unstructured.Unstructured, o authz.Options) *RequestAuth {
	out := &RequestAuth{ID: IDOf(u), Namespace: u.GetNamespace(), Generation: u.GetGeneration()}
	var spec istio.RequestAuthentication
	problems := decodeSpec(u, &spec)
	if problems != nil {
		out.Policy = jwt.Policy{Meta: metaOf(u), Selector: selectorOf(u)}
	} else {
		out.Policy, problems = jwt.FromRequestAuthentication(metaOf(u), &spec, o)
	}
	for _, r := range out.Rules {
		if id := r.Source.String(); !r.Source.IsZero() && !slices.Contains(out.Sources, id) {
			out.Sources = append(out.Sources, id)
		}
	}
	out.Problems = append(notTriedOut(u), problems...)
	return out
}

// Broken reports whether all requests to the workloads that it selects are denied, as it cannot be enforced.
func (r *RequestAuth) Broken() bool { return !r.Ignored && len(r.Problems) > 0 }

// adviseRequestAuth says what a RequestAuthentication does not do by itself.
func adviseRequestAuth(r *RequestAuth) (out []string) {
	if r.Ignored {
		return []string{"gateways, and what is outside of the cluster, verify nothing yet; it has no effect"}
	}
	if len(r.Rules) == 0 {
		return []string{"has no jwtRules, and verifies nothing"}
	}
	for i, rule := range r.Rules {
		field := fmt.Sprintf("spec.jwtRules[%d]", i)
		if len(rule.Audiences) == 0 {
			out = append(out, field+": takes tokens of the issuer that are for others, too; name your audiences")
		}
		if jwt.Unprotected(rule.Source) {
			out = append(out, field+": keys that are fetched over http may be anybody's who is on the way; use https, or jwks")
		}
	}
	return append(out, "a request without a token passes; to demand one, apply an AuthorizationPolicy with requestPrincipals")
}

func (r *RequestAuth) targets() []string { return r.Services }

func (r *RequestAuth) selects() (id, namespace string, selector map[string]string) {
	return r.ID, r.Namespace, r.Selector
}

// RequestAuths returns every RequestAuthentication.
func (s *Snapshot) RequestAuths() iter.Seq[*RequestAuth] { return RequestAuths.all(s, byID.Name) }

// RequestAuthsFor returns the RequestAuthentications of a namespace whose selectors find pods with the labels, in the order of their names.
func (s *Snapshot) RequestAuthsFor(ns string, labels map[string]string) []*RequestAuth {
	return selectingPods(s, RequestAuths, ns, labels)
}

// RequestAuthsBy returns those that take keys from a source.
func (s *Snapshot) RequestAuthsBy(source string) iter.Seq[*RequestAuth] {
	return RequestAuths.all(s, "source", source)
}

// KeySets are the sets of keys that were fetched, by the address of the source. They come from key servers, not from the API server.
var KeySets = &KindOf[KeySet]{name: "keySet"}

// KeySet is what a source of keys has answered last, as far as it can be used.
type KeySet struct {
	ID   string
	Keys string // a JSON Web Key Set; see jwt.ReadKeys
}

// KeySet returns a source's, or nil.
func (s *Snapshot) KeySet(source string) *KeySet { return KeySets.one(s, source) }
