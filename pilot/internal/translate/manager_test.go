package translate_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
)

// TestClientsDoNotChooseTheCluster asks a service for what another one has, by the header of which the shared connection manager's route
// takes the cluster.
func TestClientsDoNotChooseTheCluster(t *testing.T) {
	envoytest.Find(t)
	const header = "x-bulwark-cluster"
	ca, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 3)
	s := &scene{t: t, ca: ca, leaf: ca.Issue(t, sceneClient)}
	answering := func(name string) compile.Endpoint {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s, told %q, at %s", name, r.Header.Values(header), r.Host)
		}))
		t.Cleanup(srv.Close)
		return compile.Endpoint{Address: "127.0.0.1", Port: uint32(srv.Listener.Addr().(*net.TCPAddr).Port), Plain: true}
	}
	ledger, auto, vault := ports[0], ports[1], ports[2]
	s.outbound(ledger, protocol.HTTP, "ledger", nil, answering("ledger"))
	s.outbound(auto, protocol.Auto, "auto", nil, answering("auto"))
	s.outbound(vault, protocol.HTTP, "vault", nil, answering("vault"))
	s.start(func(*grpc.Server) {})

	other := fmt.Sprintf("outbound|%d||vault.finance.svc.cluster.local", vault)
	for _, of := range []struct {
		name, want string
		port       uint32
		header     http.Header
	}{
		{"nothing", "ledger", ledger, http.Header{}},
		{"nothing, where the protocol is not declared", "auto", auto, http.Header{}},
		{"another's cluster", "ledger", ledger, http.Header{header: {other}}},
		{"another's cluster, where the protocol is not declared", "auto", auto, http.Header{header: {other}}},
		{"another's cluster twice", "ledger", ledger, http.Header{header: {other, other}}},
		{"in another spelling", "ledger", ledger, http.Header{"X-Bulwark-Cluster": {other}}},
		{"nothing in it", "ledger", ledger, http.Header{header: {""}}},
		{"that it is the connection's", "ledger", ledger, http.Header{header: {other}, "Connection": {header}}},
		{"that it is one of the connection's", "ledger", ledger, http.Header{header: {other}, "Connection": {"keep-alive, " + header}}},
	} {
		t.Run(of.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", of.port), http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header, req.Host = of.header, "vault.finance"
			resp, err := (&http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if want := of.want + `, told [], at vault.finance`; err != nil || resp.StatusCode != http.StatusOK || string(got) != want {
				t.Errorf("%s: %q, %v; want %q", resp.Status, got, err, want)
			}
		})
	}
}
