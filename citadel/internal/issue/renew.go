package issue

import (
	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// byCertificate returns the pod that a client certificate was issued for. The handshake has verified it by the bundle and
// the time of then; the connection may be old, so it is done again.
func (a *Authorizer) byCertificate(chain []*x509.Certificate) (Caller, error) {
	_, _, err := x509svid.Verify(chain, a.Roots, x509svid.WithTime(a.Clock.Now()))
	if err != nil {
		return Caller{}, status.Errorf(codes.Unauthenticated, "client certificate does not verify: %v", err)
	}
	leaf := chain[0]
	id, err := spiffe.FromCertificate(leaf)
	if err != nil {
		return Caller{}, status.Errorf(codes.Unauthenticated, "client certificate: %v", err)
	}
	if id.TrustDomain != a.TrustDomain {
		return Caller{}, status.Errorf(codes.Unauthenticated, "client certificate is of %s, not of trust domain %s", id, a.TrustDomain)
	}
	caller := Caller{Namespace: id.Namespace, ServiceAccount: id.ServiceAccount, Serial: leaf.SerialNumber.Text(16)}
	pod, err := spiffe.PodOf(leaf)
	if err != nil {
		return caller, status.Error(codes.PermissionDenied, err.Error())
	}
	if pod == (spiffe.Pod{}) {
		return caller, status.Errorf(codes.PermissionDenied, "certificate of %s names no pod, so it cannot renew itself", id)
	}
	caller.PodName, caller.PodUID, caller.NodeName = pod.Name, pod.UID, pod.Node
	return caller, nil
}
