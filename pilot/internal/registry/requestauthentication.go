package registry

import (
	"iter"

	"github.com/hashicorp/go-memdb"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// JWTRules are the RequestAuthentications.
var JWTRules = &KindOf[JWTRule]{
	name:     "jwt",
	resource: Resource{GroupVersionResource: security.WithResource("requestauthentications"), Kind: "RequestAuthentication"},
	source:   custom(makeJWTRule),
	indexes:  []*memdb.IndexSchema{byNamespace},
	judge:    func(j *JWTRule) Verdict { return verdictOn(j.ID, j.Generation, false, j.Problems) },
}

// JWTRule stands for a RequestAuthentication: requests to the workloads it selects cannot be authenticated yet.
type JWTRule struct {
	ID         string
	Namespace  string
	Selector   map[string]string
	Generation int64
	Problems   []authz.Problem
}

func makeJWTRule(u *unstructured.Unstructured, _ authz.Options) *JWTRule {
	unverified := authz.Problem{Field: "spec.jwtRules", Reason: "JWTs are not verified yet, and an unverified rule would protect nothing"}
	return &JWTRule{
		ID: IDOf(u), Namespace: u.GetNamespace(), Selector: selectorOf(u), Generation: u.GetGeneration(),
		Problems: append(notTriedOut(u), unverified),
	}
}

// JWTRules returns every RequestAuthentication.
func (s *Snapshot) JWTRules() iter.Seq[*JWTRule] { return JWTRules.all(s, byID.Name) }

// JWTRulesIn returns a namespace's RequestAuthentications.
func (s *Snapshot) JWTRulesIn(ns string) iter.Seq[*JWTRule] {
	return JWTRules.all(s, byNamespace.Name, ns)
}
