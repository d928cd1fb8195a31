package issue

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const podTimeout = 5 * time.Second

// components may ask for their own identity; every other identity is asked for by the agent of the node it runs on.
var components = map[string]bool{
	mesh.PilotAccount: true, mesh.CitadelAccount: true, mesh.MixerAccount: true, mesh.AgentAccount: true,
}

// Authorizer decides whose identity a call may have.
type Authorizer struct {
	Reviewer *Reviewer
	Pods     typedcorev1.PodsGetter
}

// Authorize returns the service account, bound to its pod, that the call gets a certificate for.
func (a *Authorizer) Authorize(ctx context.Context) (Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	token, err := bearer(md, "authorization")
	if err != nil {
		return Caller{}, err
	}
	caller, err := a.Reviewer.Review(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	if caller.Namespace == mesh.Namespace && components[caller.ServiceAccount] && len(md.Get(mesh.AgentTokenHeader)) == 0 {
		return caller, nil
	}
	return caller, a.throughAgent(ctx, md, caller)
}

// throughAgent holds an agent to the pods of its own node: the API server has bound both tokens to a node, and the pod
// must be there still.
func (a *Authorizer) throughAgent(ctx context.Context, md metadata.MD, pod Caller) error {
	token, err := bearer(md, mesh.AgentTokenHeader)
	if err != nil {
		return err
	}
	agent, err := a.Reviewer.Review(ctx, token)
	if err != nil {
		return status.Errorf(status.Code(err), "agent's %s", status.Convert(err).Message())
	}
	switch {
	case agent.Namespace != mesh.Namespace || agent.ServiceAccount != mesh.AgentAccount:
		return status.Errorf(codes.PermissionDenied, "%s is not the node agent", agent)
	case agent.NodeName == "":
		return status.Error(codes.PermissionDenied, "agent's token is not bound to a node")
	case pod.PodName == "" || pod.PodUID == "" || pod.NodeName == "":
		return status.Errorf(codes.PermissionDenied, "token of %s is not bound to a pod and its node", pod)
	case pod.NodeName != agent.NodeName:
		return status.Errorf(codes.PermissionDenied, "%s runs on node %s, and its certificate was asked for on node %s", pod, pod.NodeName, agent.NodeName)
	}
	return a.podExists(ctx, pod)
}

// podExists asks the API server itself, not a cache: a token that outlives its pod must not get a certificate.
func (a *Authorizer) podExists(ctx context.Context, c Caller) error {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	pod, err := a.Pods.Pods(c.Namespace).Get(ctx, c.PodName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return status.Errorf(codes.PermissionDenied, "pod %s/%s does not exist", c.Namespace, c.PodName)
	case err != nil:
		return status.Errorf(codes.Unavailable, "looking up pod %s/%s: %v", c.Namespace, c.PodName, err)
	case string(pod.UID) != c.PodUID:
		return status.Errorf(codes.PermissionDenied, "pod %s/%s was replaced by another of its name", c.Namespace, c.PodName)
	case pod.DeletionTimestamp != nil:
		// Its proxy drains with the certificate it has.
		return status.Errorf(codes.PermissionDenied, "pod %s/%s is being deleted", c.Namespace, c.PodName)
	case pod.Spec.NodeName != c.NodeName:
		return status.Errorf(codes.PermissionDenied, "pod %s/%s is bound to node %s, its token to %s", c.Namespace, c.PodName, pod.Spec.NodeName, c.NodeName)
	case pod.Spec.ServiceAccountName != c.ServiceAccount:
		return status.Errorf(codes.PermissionDenied, "pod %s/%s runs as %s, its token is of %s", c.Namespace, c.PodName, pod.Spec.ServiceAccountName, c.ServiceAccount)
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
