package identities

import (
	"encoding/hex"
	"encoding/pem"
	"time"
)

// Link is one certificate of a chain.
type Link struct {
	Name        string    `json:"name"` // SPIFFE ID of a leaf, subject of a CA
	Issuer      string    `json:"issuer"`
	IssuerKeyID string    `json:"issuerKeyID"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	PEM         string    `json:"pem"`
}

// Links reads the certificates of a chain in PEM.
func Links(content []byte) ([]Link, error) {
	chain, err := Chain(content)
	if err != nil {
		return nil, err
	}
	out := make([]Link, 0, len(chain))
	for _, c := range chain {
		name := c.Subject.String()
		if !c.IsCA && len(c.URIs) > 0 {
			name = c.URIs[0].String()
		}
		out = append(out, Link{
			Name: name, Issuer: c.Issuer.String(), IssuerKeyID: hex.EncodeToString(c.AuthorityKeyId), Serial: c.SerialNumber.Text(16),
			NotBefore: c.NotBefore, NotAfter: c.NotAfter, PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})),
		})
	}
	return out, nil
}
