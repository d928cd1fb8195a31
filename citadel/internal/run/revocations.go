package run

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// maxWords bounds what a revocation says in words: revocation.MaxEntries of them must fit into a ConfigMap.
const maxWords = 512

// revoked answers with the revocations in force. Any replica may be asked: all follow the same ConfigMap.
func (o *operator) revoked(*http.Request) (any, error) {
	if err := o.revocations.Ready(); err != nil {
		return nil, err
	}
	return append(revocation.List{}, o.revocations.List()...), nil
}

// revokeCall is a revocation; Created is Citadel's to say.
type revokeCall struct {
	revocation.Revocation
	Force bool `json:"force,omitempty"` // also if it is of the control plane
}

func (o *operator) revoke(r *http.Request) (any, error) {
	var call revokeCall
	if err := read(r, &call); err != nil {
		return nil, err
	}
	made, err := complete(call, o.trustDomain, time.Now())
	if err == nil {
		err = o.revocations.Add(r.Context(), made)
	}
	o.audit.Admin(auditlog.Action{Method: auditlog.Revoke, By: call.By, Why: call.Reason, Identity: call.Identity, Serial: call.Serial, Peer: r.RemoteAddr}, err)
	if err != nil {
		return nil, err
	}
	o.leader.log.Warn("an operator revoked", "name", made.Name, "identity", made.Identity, "serial", made.Serial, "until", made.Expires, "by", made.By)
	return made, nil
}

// complete returns the revocation that a call asks for at a time, or why there is none.
func complete(call revokeCall, trustDomain string, now time.Time) (revocation.Revocation, error) {
	r := call.Revocation
	id, err := spiffe.Parse(r.Identity)
	if err != nil {
		return r, fmt.Errorf("identity: %w", err)
	}
	switch {
	case id.TrustDomain != trustDomain:
		return r, fmt.Errorf("%s is not of this mesh, whose trust domain is %s", id, trustDomain)
	case id.Namespace == mesh.Namespace && !call.Force:
		return r, fmt.Errorf("%s is a part of the control plane, which would fail; force it if that is what you want", id)
	case r.Serial == "" && r.PodUID != "":
		return r, errors.New("the certificate of a pod is revoked by its serial number, and there is none in the call")
	}
	if len(r.Name)+len(r.Reason)+len(r.By) > maxWords {
		return r, fmt.Errorf("name, reason and author of a revocation have %d bytes at most", maxWords)
	}
	if r.Name == "" {
		r.Name = id.ServiceAccount + "-" + strings.ToLower(rand.Text()[:6])
	}
	r.Created = now.UTC().Truncate(time.Second)
	return r, r.Validate()
}

func (o *operator) restore(r *http.Request) (any, error) {
	name, by := r.PathValue("name"), r.URL.Query().Get("by")
	of := auditlog.Action{Method: auditlog.Restore, By: by, Why: name, Peer: r.RemoteAddr}
	for _, known := range o.revocations.List() {
		if known.Name == name {
			of.Identity, of.Serial = known.Identity, known.Serial
		}
	}
	err := o.revocations.Undo(r.Context(), name)
	o.audit.Admin(of, err)
	if err != nil {
		return nil, err
	}
	o.leader.log.Warn("an operator undid a revocation", "name", name, "identity", of.Identity, "serial", of.Serial, "by", by)
	return struct{}{}, nil
}
