package sds

import (
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// StreamSecrets implements SecretDiscoveryService in its state-of-the-world form, for proxies and tools that are not
// configured by Pilot.
func (s *Server) StreamSecrets(rpc secretservice.SecretDiscoveryService_StreamSecretsServer) error {
	requests, failed := make(chan *discovery.DiscoveryRequest), make(chan error, 1)
	go receive(rpc, requests, failed) // ends with the stream's context
	session := s.Open()
	defer session.Close()
	w := worldStream{session: session, rpc: rpc}
	for {
		changed := s.changed()
		if err := w.send(); err != nil {
			return err
		}
		select {
		case req := <-requests:
			if err := w.take(req); err != nil {
				return err
			}
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
	session *Session
	rpc     secretservice.SecretDiscoveryService_StreamSecretsServer
	names   []string
	asked   bool
	sent    string            // version of what was sent last
	inSent  map[string]string // the versions in it, until it is answered
	nonce   int
}

// take reads a request. An answer to a response, either way, asks for nothing: a refused secret is sent again when it
// changes. This form of xDS has no way to say that a secret does not exist but to end the stream.
func (w *worldStream) take(req *discovery.DiscoveryRequest) error {
	if w.inSent != nil && req.GetResponseNonce() == strconv.Itoa(w.nonce) {
		if e := req.GetErrorDetail(); e != nil {
			w.session.Refused(deltaxds.SecretType, w.inSent, e.GetMessage())
		} else {
			w.session.Took(deltaxds.SecretType, w.inSent)
		}
		w.inSent = nil
	}
	for _, name := range req.GetResourceNames() {
		if !w.session.serves(name) {
			return status.Errorf(codes.NotFound, "pod %s has no secret %q", w.session.pod, name)
		}
	}
	w.names, w.asked = req.GetResourceNames(), true
	return nil
}

func (w *worldStream) send() error {
	if !w.asked {
		return nil
	}
	resp := &discovery.DiscoveryResponse{TypeUrl: deltaxds.SecretType}
	versions := map[string]string{}
	for _, name := range w.names {
		r, known := w.session.Resource(deltaxds.SecretType, name)
		if !known || r == nil {
			continue
		}
		resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: r.Body().GetTypeUrl(), Value: r.Body().GetValue()})
		resp.VersionInfo += name + "=" + r.Version + ";"
		versions[name] = r.Version
	}
	if len(resp.Resources) == 0 || resp.VersionInfo == w.sent {
		return nil
	}
	w.nonce++
	resp.Nonce, w.sent, w.inSent = strconv.Itoa(w.nonce), resp.VersionInfo, versions
	return w.rpc.Send(resp)
}
