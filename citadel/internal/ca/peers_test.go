package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/mtls"
)

// issued is a leaf's SVID and what its CA is trusted by.
type issued struct {
	name   string
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// ofEachKeyType returns leaves with a key of each type, signed by a root and by an intermediate with a key of each type.
func ofEachKeyType(t *testing.T) []issued {
	t.Helper()
	types := []KeyType{P256, P384, RSA}
	keys := map[KeyType]crypto.Signer{}
	for _, kind := range types {
		key, err := NewKeyOf(kind)
		if err != nil {
			t.Fatal(err)
		}
		keys[kind] = key
	}
	var out []issued
	for _, kind := range types {
		root, err := NewRoot("cluster.local", kind, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for above, m := range map[string]Material{"root": root, "intermediate": under(t, kind)} {
			a, err := New(m, clock.RealClock{})
			if err != nil {
				t.Fatal(err)
			}
			for leaf, key := range keys {
				name := fmt.Sprintf("%s key of a %s with %s", leaf, above, kind)
				chain, err := a.Issue(Request{ID: identity(t), PublicKey: key.Public(), TTL: time.Hour})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				out = append(out, issued{name: name,
					svid:   &x509svid.SVID{ID: spiffeid.RequireFromString(identity(t).String()), Certificates: chain, PrivateKey: key},
					bundle: x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("cluster.local"), a.Roots())})
			}
		}
	}
	return out
}

// under returns an intermediate beneath a root, both with keys of the type.
func under(t *testing.T, kind KeyType) Material {
	t.Helper()
	rootKey, err := NewKeyOf(kind)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKeyOf(kind)
	if err != nil {
		t.Fatal(err)
	}
	template := func(name string) *x509.Certificate {
		c, err := rootProfile("cluster.local", time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c.Subject.CommonName = name
		return c
	}
	root := template("root")
	root.MaxPathLenZero = false
	rootCert := signedBy(t, root, root, rootKey.Public(), rootKey)
	cert := signedBy(t, template("intermediate"), rootCert, key.Public(), rootKey)
	keyPEM, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return Material{Cert: EncodeCerts([]*x509.Certificate{cert}), Root: EncodeCerts([]*x509.Certificate{rootCert}), Key: keyPEM}
}

func signedBy(t *testing.T, template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// echo connects as the identity to a server that sends back what it is sent.
func (i issued) echo(t *testing.T, addr string) error {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, mtls.Client(i.svid, i.bundle, mtls.OneOf(identity(t))))
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("%s: %s", i.name, tls.VersionName(v))
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, len("hello")))
	return err
}

func TestEachKeyTypeSignsWhatPeersAccept(t *testing.T) {
	for _, i := range ofEachKeyType(t) {
		l, err := tls.Listen("tcp", "127.0.0.1:0", mtls.Server(i.svid, i.bundle, mtls.OneOf(identity(t))))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.CopyN(c, c, int64(len("hello")))
				c.Close()
			}
		}()
		if err := i.echo(t, l.Addr().String()); err != nil {
			t.Errorf("%s: %v", i.name, err)
		}
		l.Close()
	}
}

// Envoy reads keys and certificates with a library of its own, which knows less than Go's.
func TestEnvoyServesWithEachKeyTypeAndVerifiesIt(t *testing.T) {
	leaves := ofEachKeyType(t)
	addrs := make([]string, len(leaves))
	var listeners []any
	for n, i := range leaves {
		addr := free(t)
		addrs[n] = addr.String()
		listeners = append(listeners, map[string]any{
			"name":    i.name,
			"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": addr.Port}},
			"filter_chains": []any{map[string]any{
				"transport_socket": map[string]any{"name": "tls", "typed_config": i.downstreamTLS(t)},
				"filters": []any{map[string]any{"name": "echo", "typed_config": map[string]any{
					"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}},
			}},
		})
	}
	startEnvoy(t, map[string]any{"static_resources": map[string]any{"listeners": listeners}}, addrs[len(addrs)-1])
	for n, i := range leaves {
		if err := i.echo(t, addrs[n]); err != nil {
			t.Errorf("%s: %v", i.name, err)
		}
		other := leaves[(n+6)%len(leaves)] // of a CA with another type of key
		other.bundle = i.bundle
		if err := other.echo(t, addrs[n]); err == nil {
			t.Errorf("%s: takes a client with the %s", i.name, other.name)
		}
	}
}

// downstreamTLS is how Envoy serves as the leaf and asks clients for a certificate of the same CA.
func (i issued) downstreamTLS(t *testing.T) map[string]any {
	t.Helper()
	key, err := EncodeKey(i.svid.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(pem []byte) any { return map[string]any{"inline_string": string(pem)} }
	return map[string]any{
		"@type":                      "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
		"require_client_certificate": true,
		"common_tls_context": map[string]any{
			"tls_params":         map[string]any{"tls_minimum_protocol_version": "TLSv1_3"},
			"tls_certificates":   []any{map[string]any{"certificate_chain": inline(EncodeCerts(i.svid.Certificates)), "private_key": inline(key)}},
			"validation_context": map[string]any{"trusted_ca": inline(EncodeCerts(i.bundle.X509Authorities()))},
		},
	}
}

func free(t *testing.T) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr)
}

// startEnvoy runs the Envoy that BULWARK_ENVOY names, or that is on PATH, until the test ends.
func startEnvoy(t *testing.T, config any, listens string) {
	t.Helper()
	binary := os.Getenv("BULWARK_ENVOY")
	if binary == "" {
		found, err := exec.LookPath("envoy")
		if err != nil {
			t.Skip("no Envoy: set BULWARK_ENVOY or put envoy on PATH")
		}
		binary = found
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file, log := filepath.Join(t.TempDir(), "envoy.json"), filepath.Join(t.TempDir(), "envoy.log")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	envoy := exec.Command(binary, "-c", file, "--concurrency", "1", "--log-level", "warning", "--log-path", log, "--disable-hot-restart")
	if err := envoy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = envoy.Process.Kill()
		_ = envoy.Wait()
		if said, _ := os.ReadFile(log); t.Failed() {
			t.Logf("Envoy's log:\n%s", said)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("tcp", listens); err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("Envoy does not listen")
		}
	}
}
