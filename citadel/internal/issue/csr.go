package issue

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
)

// maxCSR fits RSA-4096 with room to spare.
const maxCSR = 8 << 10

// publicKey takes the one thing out of a CSR that is used: the key, which its holder has proven to have. Names and
// extensions in it mean nothing. The cheap checks come before the signature's.
func publicKey(csr string) (crypto.PublicKey, error) {
	if len(csr) > maxCSR {
		return nil, status.Errorf(codes.InvalidArgument, "CSR is longer than %d bytes", maxCSR)
	}
	block, rest := pem.Decode([]byte(csr))
	if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, status.Error(codes.InvalidArgument, "CSR is not a PEM certificate request")
	}
	if strings.TrimSpace(string(rest)) != "" {
		return nil, status.Error(codes.InvalidArgument, "there is something after the CSR")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes) // refuses trailing bytes
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "CSR cannot be parsed: %v", err)
	}
	if err := ca.CheckKey(req.PublicKey); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := req.CheckSignature(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "CSR is not signed by its own key: %v", err)
	}
	return req.PublicKey, nil
}
