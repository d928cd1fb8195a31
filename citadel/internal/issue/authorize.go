package issue

import (
	"context"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// components may ask for their own identity; every other identity is asked for by the agent of the node it runs on.
var components = map[string]bool{
	mesh.PilotAccount: true, mesh.CitadelAccount: true, mesh.MixerAccount: true, mesh.AgentAccount: true,
}

// Caller is whose identity a call is about, as its token or certificate proves.
type Caller struct {
	Namespace      string
	ServiceAccount string
	AccountUID     string // empty if a certificate says who it is
	PodName        string // the pod, its UID and node that the token or certificate is bound to; empty if it is bound to none
	PodUID         string
	NodeName       string
	Serial         string // of the certificate by which it renews, hexadecimal; empty if it has shown a token
}

func (c Caller) String() string {
	if c.PodName == "" {
		return "service account " + c.Namespace + "/" + c.ServiceAccount
	}
	return "service account " + c.Namespace + "/" + c.ServiceAccount + " of pod " + c.PodName
}

// Authorizer decides whose identity a call may have.
type Authorizer struct {
	Tokens      *Verifier
	Pods        *Presence
	TrustDomain string
	Roots       x509bundle.Source // by which client certificates are verified
	Clock       clock.PassiveClock
}

// parties are the caller, and the node agent that asks for it (nil if nobody does).
type parties struct {
	Caller
	agent *Caller
}

// identify returns who calls, before it is asked whether they still exist. With an error it returns as much as is proven.
func (a *Authorizer) identify(ctx context.Context) (parties, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get("authorization")) == 0 && len(md.Get(mesh.AgentTokenHeader)) == 0 {
		if chain, err := mtls.PeerChain(ctx); err == nil {
			caller, err := a.byCertificate(chain)
			return parties{Caller: caller}, err
		}
	}
	token, err := bearer(md, "authorization")
	if err != nil {
		return parties{}, err
	}
	caller, err := a.Tokens.Verify(ctx, token)
	if err != nil {
		return parties{}, err
	}
	if caller.PodName == "" || caller.PodUID == "" || caller.NodeName == "" {
		return parties{Caller: caller}, status.Errorf(codes.PermissionDenied, "token of %s is not bound to a pod and its node", caller)
	}
	if caller.Namespace == mesh.Namespace && components[caller.ServiceAccount] && len(md.Get(mesh.AgentTokenHeader)) == 0 {
		return parties{Caller: caller}, nil
	}
	agent, err := a.agentOf(ctx, md, caller)
	return parties{Caller: caller, agent: agent}, err
}

// agentOf holds an agent to the pods of its own node: the API server has bound both tokens to a node.
func (a *Authorizer) agentOf(ctx context.Context, md metadata.MD, pod Caller) (*Caller, error) {
	token, err := bearer(md, mesh.AgentTokenHeader)
	if err != nil {
		return nil, err
	}
	agent, err := a.Tokens.Verify(ctx, token)
	if err != nil {
		return nil, status.Errorf(status.Code(err), "agent's %s", status.Convert(err).Message())
	}
	switch {
	case agent.Namespace != mesh.Namespace || agent.ServiceAccount != mesh.AgentAccount:
		return nil, status.Errorf(codes.PermissionDenied, "%s is not the node agent", agent)
	case agent.PodName == "" || agent.PodUID == "" || agent.NodeName == "":
		return nil, status.Error(codes.PermissionDenied, "agent's token is not bound to a pod and its node")
	case pod.NodeName != agent.NodeName:
		return nil, status.Errorf(codes.PermissionDenied, "%s runs on node %s, and its certificate was asked for on node %s", pod, pod.NodeName, agent.NodeName)
	}
	return &agent, nil
}

// present returns nil if all parties are there still.
func (a *Authorizer) present(ctx context.Context, p parties) error {
	if err := a.Pods.Check(ctx, p.Caller); err != nil {
		return err
	}
	if p.agent == nil {
		return nil
	}
	if err := a.Pods.Check(ctx, *p.agent); err != nil {
		return status.Errorf(status.Code(err), "agent: %s", status.Convert(err).Message())
	}
	return nil
}

func bearer(md metadata.MD, header string) (string, error) {
	values := md.Get(header)
	if len(values) != 1 {
		return "", status.Errorf(codes.Unauthenticated, "header %s must hold one bearer token, there are %d", header, len(values))
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok || token == "" {
		return "", status.Errorf(codes.Unauthenticated, "header %s is not of the form \"Bearer <token>\"", header)
	}
	return token, nil
}
