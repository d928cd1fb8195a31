package run

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/issue"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// self is Citadel's own identity, which it issues to itself.
type self = svid.Rotator

func newSelf(service *issue.Service, trustDomain string, log *slog.Logger) (*self, error) {
	id, err := spiffe.New(trustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	uri, err := spiffeid.FromString(id.String())
	if err != nil {
		return nil, err
	}
	fetch := func(context.Context) (*x509svid.SVID, error) {
		key, err := ca.NewKey()
		if err != nil {
			return nil, err
		}
		chain, err := service.Issue(id, key.Public(), 0)
		if err != nil {
			return nil, err
		}
		return &x509svid.SVID{ID: uri, Certificates: chain, PrivateKey: key}, nil
	}
	return svid.NewRotator(fetch, clock.RealClock{}, log, nil), nil
}

// caView is what the operator sees of the CA.
type caView struct {
	Signer  certView   `json:"signer"`
	Roots   []certView `json:"roots"`
	Leading bool       `json:"leading"` // this replica reconciles Secrets and bundles
}

type certView struct {
	Subject   string `json:"subject"`
	Issuer    string `json:"issuer"`
	Serial    string `json:"serial"`
	NotBefore string `json:"notBefore"`
	NotAfter  string `json:"notAfter"`
}

func describe(keeper *ca.Keeper, leading *atomic.Bool) func(*http.Request) (any, error) {
	return func(*http.Request) (any, error) {
		state := keeper.Current()
		view := caView{Signer: viewOf(state.Signer.Certificate()), Leading: leading.Load()}
		for _, root := range state.Roots {
			view.Roots = append(view.Roots, viewOf(root))
		}
		return view, nil
	}
}

func viewOf(c *x509.Certificate) certView {
	const layout = "2006-01-02T15:04:05Z07:00"
	return certView{
		Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: c.SerialNumber.Text(16),
		NotBefore: c.NotBefore.Format(layout), NotAfter: c.NotAfter.Format(layout),
	}
}
