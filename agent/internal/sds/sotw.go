package sds

import (
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// StreamSecrets implements SecretDiscoveryService in its state-of-the-world form, for proxies and tools that are not
// configured by Pilot.
func (s *Server) StreamSecrets(rpc secretservice.SecretDiscoveryService_StreamSecretsServer) error {
	requests, failed := make(chan *discovery.DiscoveryRequest), make(chan error, 1)
	go receive(rpc, requests, failed) // ends with the stream's context
	w := worldStream{server: s, rpc: rpc}
	for {
		changed := s.changed()
		if err := w.send(); err != nil {
			return err
		}
		select {
		case req := <-requests:
			w.take(req)
		case <-changed.certificate:
		case <-changed.bundle:
		case err := <-failed:
			return err
		case <-rpc.Context().Done():
			return nil
		}
	}
}

func receive(rpc secretservice.SecretDiscoveryService_StreamSecretsServer, requests chan<- *discovery.DiscoveryRequest, failed chan<- error) {
	for {
		req, err := rpc.Recv()
		if err != nil {
			failed <- err
			return
		}
		select {
		case requests <- req:
		case <-rpc.Context().Done():
			return
		}
	}
}

type changes struct{ certificate, bundle <-chan struct{} }

func (s *Server) changed() changes {
	_, bundle, _ := s.bundle.Current()
	return changes{certificate: s.pod.Changed(), bundle: bundle}
}

type worldStream struct {
	server *Server
	rpc    secretservice.SecretDiscoveryService_StreamSecretsServer
	names  []string
	asked  bool
	sent   string // version of what was sent last
	nonce  int
}

// take reads a request. An answer to a response, either way, asks for nothing: a refused secret is sent again when it
// changes.
func (w *worldStream) take(req *discovery.DiscoveryRequest) {
	w.names, w.asked = req.GetResourceNames(), true
}

func (w *worldStream) send() error {
	if !w.asked {
		return nil
	}
	resp := &discovery.DiscoveryResponse{TypeUrl: deltaxds.SecretType}
	for _, name := range w.names {
		r, known := w.server.Resource(deltaxds.SecretType, name)
		if !known || r == nil {
			continue
		}
		resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: r.Body().GetTypeUrl(), Value: r.Body().GetValue()})
		resp.VersionInfo += name + "=" + r.Version + ";"
	}
	if len(resp.Resources) == 0 || resp.VersionInfo == w.sent {
		return nil
	}
	w.nonce++
	resp.Nonce, w.sent = strconv.Itoa(w.nonce), resp.VersionInfo
	return w.rpc.Send(resp)
}
