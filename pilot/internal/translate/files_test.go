package translate_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/handshake"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// volume is a directory that changes as kubelet changes a projected volume: at one stroke, by a symbolic link.
type volume struct {
	t          *testing.T
	dir        string
	generation int
}

func (v *volume) write(leaf envoytest.Leaf, root []byte) {
	v.t.Helper()
	files := map[string][]byte{"cert-chain.pem": leaf.Cert, "key.pem": leaf.Key, "root-cert.pem": root}
	for name, response := range handshake.SecretFiles() {
		text, err := protojson.Marshal(response)
		if err != nil {
			v.t.Fatal(err)
		}
		files[name] = []byte(strings.ReplaceAll(string(text), handshake.FilesPath, v.dir))
	}
	v.generation++
	generation := fmt.Sprintf("..generation_%d", v.generation)
	v.must(os.Mkdir(filepath.Join(v.dir, generation), 0o700))
	for name, text := range files {
		v.must(os.WriteFile(filepath.Join(v.dir, generation, name), text, 0o600))
		if v.generation == 1 {
			v.must(os.Symlink(filepath.Join("..data", name), filepath.Join(v.dir, name)))
		}
	}
	v.must(os.Symlink(generation, filepath.Join(v.dir, "..data_tmp")))
	v.must(os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, "..data")))
}

func (v *volume) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// relocated has the resources find their files in a directory of the test.
func relocated[M proto.Message](t *testing.T, m M, dir string) M {
	t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface().(M)
	if err := protojson.Unmarshal([]byte(strings.ReplaceAll(string(text), handshake.FilesPath, dir)), out); err != nil {
		t.Fatal(err)
	}
	return out
}

// serialOf returns the number of the certificate that a server shows to a client.
func serialOf(t *testing.T, port uint32, client envoytest.Leaf, roots *x509.CertPool) (string, error) {
	t.Helper()
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{ //nolint:gosec // the chain is verified below
		Certificates: []tls.Certificate{client.TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	leaf := conn.ConnectionState().PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return "", err
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil { // a client that is refused learns it here
		return "", err
	}
	return leaf.SerialNumber.String(), nil
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within 20 seconds: %s", what)
}

// The proxy's inbound side shows the certificate of the files, and its outbound side, another Envoy's client, too.
func TestCertificatesFromFilesAreFollowedWhenTheyChange(t *testing.T) {
	ports, ca, next := envoytest.FreePorts(t, 3), envoytest.NewCA(t), envoytest.NewCA(t)
	const server, client = "spiffe://cluster.local/ns/finance/sa/payroll", "spiffe://cluster.local/ns/shop/sa/client"
	app := startApplication(t, false)
	v := &volume{t: t, dir: t.TempDir()}
	first := ca.Issue(t, server)
	v.write(first, ca.Root)

	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[1]}
	in, target := fromFiles(t, ports[0], app)
	b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, in), append(b.StaticResources.Clusters, target)
	out := outboundTo(t, ports[0], server, ports[2])
	b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, out.listener), append(b.StaticResources.Clusters, out.cluster)
	envoytest.Start(t, relocated[*bootstrap.Bootstrap](t, b, v.dir), "sidecar~127.0.0.1~a.b~b.svc.cluster.local")

	shows := func(leaf envoytest.Leaf, as envoytest.Leaf, ca *envoytest.CA) func() bool {
		return func() bool {
			got, err := serialOf(t, ports[0], as, ca.Pool())
			return err == nil && got == leaf.TLS.Leaf.SerialNumber.String()
		}
	}
	through := func() bool { return talk(t, ports[2], spiffe.ID{}, nil, "", "knock") == "knock" }
	until(t, "the first certificate", shows(first, ca.Issue(t, client), ca))
	until(t, "traffic through both sides", through)
	second := ca.Issue(t, server)
	v.write(second, ca.Root)
	until(t, "the renewed certificate", shows(second, ca.Issue(t, client), ca))
	third := next.Issue(t, server)
	v.write(third, next.Root)
	until(t, "the certificate of another root", shows(third, next.Issue(t, client), next))
	if _, err := serialOf(t, ports[0], ca.Issue(t, client), next.Pool()); err == nil {
		t.Fatal("a client of the old root is let in")
	}
	until(t, "traffic through both sides, again", through)
}

// fromFiles is the inbound side of a TCP port whose certificate comes from the account's Secret.
func fromFiles(t *testing.T, port uint32, app *application) (*listener.Listener, *cluster.Cluster) {
	t.Helper()
	w := &compile.Workload{
		Class: compile.Class{Namespace: "finance", Delivery: delivery.BySecret}, Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.TCP},
		Ports: []compile.InboundPort{{Number: port, Protocol: protocol.TCP, Mode: authz.Strict}},
	}
	return inboundOn(t, w, port), staticCluster(applicationBehind(port), app.port)
}

type outbound struct {
	listener *listener.Listener
	cluster  *cluster.Cluster
}

// outboundTo is a client's side that reaches a mesh port on this machine, as one whose certificate comes from files.
func outboundTo(t *testing.T, port uint32, identity string, at uint32) outbound {
	t.Helper()
	p := &compile.ServicePort{Service: &registry.Service{Name: "payroll", Namespace: "finance"}, Host: "payroll.finance.svc.cluster.local", Number: at,
		Protocol: protocol.TCP, Mutual: true, Identities: []string{identity}}
	c := translate.OutboundCluster(p, delivery.BySecret)
	s := staticCluster(c.GetName(), port)
	c.ClusterDiscoveryType, c.EdsClusterConfig, c.LoadAssignment = s.ClusterDiscoveryType, nil, s.LoadAssignment
	l := translate.ServiceListener(&compile.Frontend{Address: compile.Address{IP: "127.0.0.1", Port: at}, Service: *p})
	inlineShared(l)
	l.BindToPort = nil
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		if chain != nil {
			dropLogs(t, chain)
		}
	}
	return outbound{l, c}
}
