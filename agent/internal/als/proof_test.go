package als

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

// mutual is an Envoy whose one listener demands certificates of the mesh and logs each connection, whatever became of it, as
// Pilot has it done for TCP: see pilot/internal/telemetry, accesslog.go.
const mutual = `
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {filename: %[2]s/cert.pem}, private_key: {filename: %[2]s/key.pem}}]
            validation_context: {trusted_ca: {filename: %[2]s/ca.pem}}
      filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: test
          cluster: application
          access_log:
          - name: envoy.access_loggers.open_telemetry
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig
              log_name: audit
              disable_builtin_labels: true
              buffer_flush_interval: 0.1s
              grpc_service: {envoy_grpc: {cluster_name: bulwark-agent}}
              attributes:
                values:
                - {key: bulwark.kind, value: {string_value: tcp}}
                - {key: bulwark.direction, value: {string_value: inbound}}
                - {key: bulwark.source_principal, value: {string_value: "%%DOWNSTREAM_PEER_URI_SAN%%"}}
                - {key: bulwark.received, value: {string_value: "%%BYTES_RECEIVED%%"}}
                - {key: downstream_failure, value: {string_value: "%%DOWNSTREAM_TRANSPORT_FAILURE_REASON%%"}}
                - {key: source_address, value: {string_value: "%%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%%"}}
  clusters:
  - name: application
    type: STATIC
    load_assignment:
      cluster_name: application
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}}]}]
  - name: bulwark-agent
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: bulwark-agent
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %[4]s}}}}]}]
`

// bySource keeps the event of each connection.
type bySource struct {
	mu   sync.Mutex
	seen map[string]*telemetryv1.Event
}

func (b *bySource) Append(e *telemetryv1.Event) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen[e.GetSourceAddress()] = e
	return true
}

func (b *bySource) get(t *testing.T, address string) *telemetryv1.Event {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b.mu.Lock()
		e := b.seen[address]
		b.mu.Unlock()
		if e != nil {
			return e
		}
		if time.Now().After(deadline) {
			t.Fatalf("no entry of the connection from %s", address)
		}
	}
}

// forged is a certificate that nobody signed, with the bytes of a URI as they are.
func forged(t *testing.T, uri string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}})
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// first passes on a client's first flight and, of its second, so many records: the certificate without the proof that the
// client has its key.
type first struct {
	net.Conn
	flights, records int
}

var errCut = errors.New("cut")

func (f *first) Write(p []byte) (int, error) {
	f.flights++
	if f.flights == 1 {
		return f.Conn.Write(p)
	}
	rest, end := p, 0
	for n := 0; n < f.records && len(rest) >= 5; {
		size := 5 + int(rest[3])<<8 + int(rest[4])
		if rest[0] == 23 { // encrypted; what comes before is the change of ciphers for the sake of old middleboxes
			n++
		}
		end, rest = end+size, rest[size:]
	}
	if _, err := f.Conn.Write(p[:end]); err != nil {
		return 0, err
	}
	return 0, errCut
}

// Close sends no alert.
func (f *first) Close() error { return f.Conn.Close() }

// A name is proven by a handshake that ended well, and by nothing less: a certificate is no secret.
func TestOnlyAHandshakeProvesAnIdentity(t *testing.T) {
	binary := os.Getenv("BULWARK_ENVOY")
	if binary == "" {
		var err error
		if binary, err = exec.LookPath("envoy"); err != nil {
			t.Skip("no Envoy: BULWARK_ENVOY is not set and there is none on the PATH")
		}
	}
	dir, err := os.MkdirTemp("", "als") // t.TempDir's may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent.sock")
	got := &bySource{seen: map[string]*telemetryv1.Event{}}
	t.Cleanup(receive(t, socket, got))
	ca := svidtest.New(t, "cluster.local")
	id := ca.ID("finance", "payroll")
	server, client := ca.SVID(ca.ID("finance", "server"), time.Now().Add(time.Hour)), ca.SVID(id, time.Now().Add(time.Hour))
	chain, key, err := server.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	application, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { application.Close() })
	go func() {
		for {
			c, err := application.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }() // ends with the connection
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	for name, content := range map[string][]byte{"cert.pem": chain, "key.pem": key, "ca.pem": ca.PEM(),
		"envoy.yaml": fmt.Appendf(nil, mutual, port, dir, application.Addr().(*net.TCPAddr).Port, socket)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "-c", filepath.Join(dir, "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

	dial := func() net.Conn {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				return c
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	// connect has a connection of its own and returns what was logged of it.
	connect := func(certificate tls.Certificate, wrap func(net.Conn) net.Conn) *telemetryv1.Event {
		t.Helper()
		raw := dial()
		_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
		c := tls.Client(wrap(raw), &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }})
		if err := c.Handshake(); err == nil {
			_, _ = c.Write([]byte("x"))
			_, _ = c.Read(make([]byte, 1))
		}
		raw.Close()
		return got.get(t, raw.LocalAddr().String())
	}
	whole := func(c net.Conn) net.Conn { return c }
	own := tls.Certificate{Certificate: [][]byte{client.Certificates[0].Raw}, PrivateKey: client.PrivateKey}
	stolen := own
	stolen.PrivateKey = forged(t, "spiffe://x").PrivateKey
	const crlf = "spiffe://cluster.local/ns/finance/sa/a\r\n19:00:00.000  allowed   forged row\x1b[2K"

	if e := connect(own, whole); e.GetSourceIdentity() != id.String() || e.GetClaimedSource() != "" || e.GetVerdict() != allowed {
		t.Errorf("a member: %v", e)
	}
	for name, e := range map[string]*telemetryv1.Event{
		"a forged certificate":                    connect(forged(t, id.String()), whole),
		"a member's certificate, another key":     connect(stolen, whole),
		"a member's certificate, and then no key": connect(own, func(c net.Conn) net.Conn { return &first{Conn: c, records: 1} }),
	} {
		if e.GetSourceIdentity() != "" || e.GetVerdict() != refused {
			t.Errorf("%s: %v", name, e)
		}
		if e.GetClaimedSource() != id.String() {
			t.Errorf("%s: what it claimed is lost: %v", name, e)
		}
	}
	if e := connect(forged(t, crlf), whole); e.GetSourceIdentity() != "" || !strings.Contains(e.GetClaimedSource(), "forged row") {
		t.Errorf("a forged certificate with line breaks: %v", e)
	}
}
