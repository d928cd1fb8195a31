package e2e

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Certificates of two real agents, as a thief would have them: the one of the victim's node reads the victim's configuration, and the other reads nothing
// that is only the victim's, whatever it says that it has.
func anAgentReadsItsOwnNodeAlone(ctx context.Context, s bareScene) (string, error) {
	i, err := newImpostor(ctx, s)
	if err != nil {
		return "", err
	}
	defer i.stop()
	defer i.request.Close()
	pilots, err := s.Component(ctx, "pilot")
	if err != nil {
		return "", err
	}
	address, stop, err := s.Forward(ctx, &pilots[0], mesh.XDSPort)
	if err != nil {
		return "", err
	}
	defer stop()
	own, err := i.follows(ctx, address, i.ours, nil)
	if err != nil {
		return "", fmt.Errorf("by the agent of the node: %w", err)
	}
	layers := own.GetWords()[0].GetLayers()
	if len(layers) == 0 || len(own.GetChanges()) == 0 {
		return "", fmt.Errorf("the agent of the node is told %v", own.GetWords())
	}
	for _, claimed := range [][]string{nil, layers} {
		got, err := i.follows(ctx, address, i.others, claimed)
		if err != nil {
			return "", fmt.Errorf("by the agent of another node: %w", err)
		}
		if w := got.GetWords()[0]; len(w.GetLayers()) > 0 || w.GetRefused() == "" || len(got.GetChanges()) > 0 {
			return "", fmt.Errorf("the agent of another node, which says that it has %v, is told %v and %d changes", claimed, w, len(got.GetChanges()))
		}
	}
	return fmt.Sprintf("the agent of the node was told of %d layers, that of another of none", len(layers)), nil
}

// follows asks Pilot for the victim with an agent's certificate, saying that it has layers already, and returns the first update.
func (i *impostor) follows(ctx context.Context, address string, agent *corev1.Pod, has []string) (*nodev1.Update, error) {
	token, err := i.token(ctx, agent, mesh.CitadelAudience)
	if err != nil {
		return nil, err
	}
	own, err := i.asks(ctx, token, "")
	if err != nil {
		return nil, fmt.Errorf("certificate of agent %s: %w", agent.Name, err)
	}
	conn, err := i.dialPilot(address, own)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rpc, err := nodev1.NewNodeConfigurationClient(conn).Follow(ctx)
	if err != nil {
		return nil, err
	}
	victim := &nodev1.Pod{Uid: string(i.victim.UID), Name: i.victim.Namespace + "/" + i.victim.Name, Layers: has}
	if err := rpc.Send(&nodev1.Report{Pods: []*nodev1.Pod{victim}}); err != nil {
		return nil, err
	}
	var whole *nodev1.Update
	for {
		part, err := rpc.Recv()
		if err != nil {
			return nil, err
		}
		if whole == nil {
			whole = part
		} else {
			whole.Changes = append(whole.Changes, part.GetChanges()...)
		}
		if !part.GetMore() {
			break
		}
	}
	if len(whole.GetWords()) != 1 {
		return nil, errors.New("not one word about the pod")
	}
	return whole, nil
}

func (i *impostor) dialPilot(address string, own *x509svid.SVID) (*grpc.ClientConn, error) {
	pilot, err := spiffe.New(mesh.DefaultTrustDomain, mesh.Namespace, mesh.PilotAccount)
	if err != nil {
		return nil, err
	}
	options := append(mtls.DialOptions(mtls.Client(own, i.bundle, mtls.OneOf(pilot))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(nodexds.MaxMessage)))
	return grpc.NewClient(address, options...)
}
