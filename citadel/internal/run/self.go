package run

import (
	"context"
	"log/slog"

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
