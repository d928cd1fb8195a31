package sample

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// TLSResult is what TLS prints.
type TLSResult struct {
	Refused bool   `json:"refused"`
	Error   string `json:"error,omitempty"`
	Got     string `json:"got,omitempty"`    // the beginning of a response, if there was one
	Server  string `json:"server,omitempty"` // URI SAN of the server's certificate
	Version string `json:"version,omitempty"`
}

// TLS returns the subcommand of an attacker who speaks TLS to a workload, with no certificate, or with one that names
// a mesh identity and is signed by a CA of the attacker's own. The attacker does not care who the server is.
func TLS() *cobra.Command {
	var forged, stolen string
	cmd := &cobra.Command{Use: "tls ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}} //nolint:gosec // an attacker
		if forged != "" {
			cert, err := forge(forged)
			if err != nil {
				return err
			}
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		if stolen != "" {
			cert, err := steal(cmd.Context(), stolen, config)
			if err != nil {
				return err
			}
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		var out TLSResult
		if err := attack(cmd.Context(), args[0], config, &out); err != nil {
			out.Refused, out.Error = true, err.Error()
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
	cmd.Flags().StringVar(&forged, "forge", "", "URI of a forged certificate, whose bytes may be escapes of Go (\\r\\n)")
	cmd.Flags().StringVar(&stolen, "steal", "", "address of a server whose certificate is shown, without its key")
	return cmd
}

// attack succeeds when the server answers a request. In TLS 1.3 the client's handshake is over before the server has
// looked at its certificate, so that only reading tells.
func attack(ctx context.Context, address string, config *tls.Config, out *TLSResult) error {
	raw, err := (&net.Dialer{Timeout: requestTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	state := conn.ConnectionState()
	out.Version = tls.VersionName(state.Version)
	if len(state.PeerCertificates) > 0 && len(state.PeerCertificates[0].URIs) > 0 {
		out.Server = state.PeerCertificates[0].URIs[0].String()
	}
	if _, err := fmt.Fprint(conn, "GET /accounts/42 HTTP/1.1\r\nHost: payroll\r\n\r\n"); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if n == 0 {
		return fmt.Errorf("reading: %w", errors.Join(err, errors.New("no answer")))
	}
	out.Got = string(buf[:n])
	return nil
}

// forge makes a certificate that names a URI in the bytes that are given, which need not be a URI at all.
func forge(text string) (*tls.Certificate, error) {
	uri, err := strconv.Unquote(`"` + text + `"`)
	if err != nil {
		return nil, fmt.Errorf("--forge %q: %w", text, err)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"attacker"}}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// steal takes the chain that a server shows to everybody; the key is another.
func steal(ctx context.Context, address string, config *tls.Config) (*tls.Certificate, error) {
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--steal %s: %w", address, err)
	}
	defer conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{PrivateKey: key}
	for _, c := range conn.(*tls.Conn).ConnectionState().PeerCertificates {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
