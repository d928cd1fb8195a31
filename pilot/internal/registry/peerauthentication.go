package registry

import (
	"iter"

	"github.com/hashicorp/go-memdb"
	istio "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// PeerAuths are the PeerAuthentications.
var PeerAuths = &KindOf[PeerAuth]{
	name:     "peer",
	resource: Resource{GroupVersionResource: security.WithResource("peerauthentications"), Kind: "PeerAuthentication"},
	source:   custom(makePeerAuth),
	indexes:  []*memdb.IndexSchema{byNamespace},
	judge:    func(p *PeerAuth) Verdict { return verdictOn(p.ID, p.Generation, p.Ignored, p.Problems) },
}

// PeerAuth is a PeerAuthentication, compiled.
type PeerAuth struct {
	ID        string
	Namespace string
	authz.PeerPolicy
	Generation int64
	Problems   []authz.Problem
}

// makePeerAuth compiles a policy. One that cannot be decoded is STRICT.
func makePeerAuth(u *unstructured.Unstructured, o authz.Options) *PeerAuth {
	out := &PeerAuth{ID: IDOf(u), Namespace: u.GetNamespace(), Generation: u.GetGeneration()}
	var spec istio.PeerAuthentication
	problems := decodeSpec(u, &spec)
	if problems != nil {
		out.PeerPolicy = authz.PeerPolicy{Meta: metaOf(u), Selector: selectorOf(u), Mode: authz.Strict}
	} else {
		out.PeerPolicy, problems = authz.FromPeerAuthentication(metaOf(u), &spec, o)
	}
	out.Problems = append(notTriedOut(u), problems...)
	return out
}

// PeerAuths returns every PeerAuthentication.
func (s *Snapshot) PeerAuths() iter.Seq[*PeerAuth] { return PeerAuths.all(s, byID.Name) }

// PeerAuthsIn returns a namespace's PeerAuthentications.
func (s *Snapshot) PeerAuthsIn(ns string) iter.Seq[*PeerAuth] {
	return PeerAuths.all(s, byNamespace.Name, ns)
}

func (p *PeerAuth) selects() (id, namespace string, selector map[string]string) {
	return p.ID, p.Namespace, p.Selector
}
