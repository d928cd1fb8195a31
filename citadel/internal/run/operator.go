package run

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/conductor"
	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/revoke"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/pkg/operatorapi"
)

// operator is what an operator sees of the CA and of revocations, and may do to them. Every change is in the audit trail,
// and so is one that was refused.
type operator struct {
	leader      *leader
	origins     *origin.Origins
	revocations *revoke.Store
	audit       *auditlog.Log
	trustDomain string
}

func (o *operator) register(api *operatorapi.Server) {
	api.HandleJSON("GET /v1/ca", func(*http.Request) (any, error) { return o.view(), nil })
	api.HandleJSON("POST /v1/ca/rotation", o.rotate)
	api.HandleJSON("GET /v1/secrets", func(*http.Request) (any, error) { return o.leader.workloads.Schedule(), nil })
	api.HandleJSON("GET /v1/secrets/wanted", func(*http.Request) (any, error) { return o.leader.workloads.Wanted(), nil })
	api.HandleJSON("GET /v1/revocations", o.revoked)
	api.HandleJSON("POST /v1/revocations", o.revoke)
	api.HandleJSON("DELETE /v1/revocations/{name}", o.restore)
}

// caView is what the operator sees of the CA.
type caView struct {
	Signer      certView        `json:"signer"`
	Origin      rotate.Origin   `json:"origin"`
	Constrained bool            `json:"constrained"` // name constraints limit the CA to certain trust domains
	Roots       []certView      `json:"roots"`
	Sequence    uint64          `json:"sequence"`
	TokenKeys   []string        `json:"tokenKeys"` // the first signs
	Leading     bool            `json:"leading"`   // this replica reconciles, and knows the rest
	Rotation    rotate.Rotation `json:"rotation"`
	Waits       []rotate.Wait   `json:"waits,omitempty"`
	Holders     int             `json:"holders"`
	Trouble     string          `json:"trouble,omitempty"` // why the CA that should sign does not
}

type certView struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	KeyID     string    `json:"keyID"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

func viewOf(c *x509.Certificate) certView {
	return certView{
		Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: c.SerialNumber.Text(16), KeyID: fmt.Sprintf("%x", c.SubjectKeyId),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter,
	}
}

func (o *operator) view() caView {
	l := o.leader
	state, stored := l.store.Keeper().Current(), l.store.CA()
	v := caView{
		Signer: viewOf(state.Signer.Certificate()), Origin: stored.Current.Origin, Constrained: state.Signer.Constrained(),
		Sequence: state.Sequence, Rotation: stored.Rotation, Leading: l.leading.Load(),
	}
	for _, root := range state.Roots {
		v.Roots = append(v.Roots, viewOf(root))
	}
	if state.Tokens != nil {
		v.TokenKeys = append(v.TokenKeys, state.Tokens.Signer.ID)
		for _, k := range state.Tokens.Published {
			if k.ID != state.Tokens.Signer.ID {
				v.TokenKeys = append(v.TokenKeys, k.ID)
			}
		}
	}
	if v.Leading {
		v.Waits, v.Holders = l.conductor.Waits(), len(l.holdings.Holders())
		v.Trouble, _ = l.conductor.Trouble()
	}
	return v
}

const maxBody = 16 << 10

// rotationCall is what an operator says to a rotation.
type rotationCall struct {
	Action string `json:"action"` // start, pause, resume, abort or force
	By     string `json:"by"`     // who, as meshctl knows
}

// rotate is answered by any replica: what it changes is in the CA Secret, which the leader follows.
func (o *operator) rotate(r *http.Request) (any, error) {
	var call rotationCall
	if err := read(r, &call); err != nil {
		return nil, err
	}
	err := o.do(r.Context(), o.leader.conductor, call)
	o.audit.Admin(auditlog.Action{Method: auditlog.RotationPrefix + call.Action, By: call.By, Peer: r.RemoteAddr}, err)
	if err != nil {
		return nil, err
	}
	o.leader.log.Info("an operator spoke to the root rotation", "action", call.Action, "by", call.By)
	return o.view(), nil
}

// read reads the JSON of a call.
func read(r *http.Request, into any) error {
	body := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	body.DisallowUnknownFields()
	if err := body.Decode(into); err != nil {
		return fmt.Errorf("reading the call: %w", err)
	}
	return nil
}

func (o *operator) do(ctx context.Context, c *conductor.Conductor, call rotationCall) error {
	now := func(change func(rotate.CA, time.Time) (rotate.CA, error)) func(rotate.CA) (rotate.CA, error) {
		return func(stored rotate.CA) (rotate.CA, error) { return change(stored, time.Now()) }
	}
	switch call.Action {
	case "start":
		if o.leader.store.CA().Rotation.Phase != rotate.Idle {
			return rotate.ErrUnderWay
		}
		next, err := o.origins.Next(ctx)
		if err != nil {
			return err
		}
		return c.Start(ctx, next, "started by "+call.By)
	case "pause":
		return c.Do(ctx, rotate.Pause)
	case "resume":
		return c.Do(ctx, rotate.Resume)
	case "abort":
		return c.Do(ctx, now(rotate.Abort))
	case "force":
		return c.Do(ctx, rotate.Force)
	default:
		return errors.New("action is start, pause, resume, abort or force")
	}
}
