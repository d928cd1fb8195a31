package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newAuthority(t testing.TB, ttl time.Duration) (*Authority, *testclock.FakePassiveClock) {
	t.Helper()
	clock := testclock.NewFakePassiveClock(start)
	m, err := NewRoot("cluster.local", P256, start, ttl)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(m, clock)
	if err != nil {
		t.Fatal(err)
	}
	return a, clock
}

func identity(t testing.TB) spiffe.ID {
	t.Helper()
	id, err := spiffe.New("cluster.local", "finance", "payroll")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestIssuedCertificateIsAnX509SVID(t *testing.T) {
	a, _ := newAuthority(t, 10*365*24*time.Hour)
	key := newKey(t)
	chain, err := a.Issue(Request{ID: identity(t), PublicKey: key.Public(), TTL: 24 * time.Hour, DNSNames: []string{"a.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 1 {
		t.Fatalf("%d certificates; the root is not part of a chain", len(chain))
	}
	leaf := chain[0]
	bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("cluster.local"), a.Roots())
	id, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(start))
	if err != nil || id.String() != "spiffe://cluster.local/ns/finance/sa/payroll" {
		t.Fatalf("%s, %v", id, err)
	}
	if got := leaf.NotBefore; !got.Equal(start.Add(-Backdate)) {
		t.Errorf("valid from %s", got)
	}
	if got := leaf.NotAfter; !got.Equal(start.Add(24 * time.Hour)) {
		t.Errorf("valid until %s", got)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA || !leaf.BasicConstraintsValid || len(leaf.URIs) != 1 || leaf.Subject.String() != "" {
		t.Errorf("profile: %+v", leaf)
	}
	if bits := leaf.SerialNumber.BitLen(); bits < 100 || bits > 128 {
		t.Errorf("serial number of %d bits", bits)
	}
}

func TestRSALeafMayEncipherKeys(t *testing.T) {
	a, _ := newAuthority(t, 24*time.Hour)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(Request{ID: identity(t), PublicKey: key.Public(), TTL: time.Hour})
	if err != nil || chain[0].KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
		t.Fatalf("%v, %v", chain, err)
	}
}

func TestCertificateNeverOutlivesItsIssuer(t *testing.T) {
	a, clock := newAuthority(t, 10*time.Hour)
	chain, err := a.Issue(Request{ID: identity(t), PublicKey: newKey(t).Public(), TTL: 24 * time.Hour})
	if err != nil || !chain[0].NotAfter.Equal(a.Certificate().NotAfter) {
		t.Fatalf("%v, %v", chain, err)
	}
	clock.SetTime(start.Add(11 * time.Hour))
	if _, err := a.Issue(Request{ID: identity(t), PublicKey: newKey(t).Public(), TTL: time.Hour}); err == nil {
		t.Fatal("signed by a CA that has ended")
	}
}

func TestRootMaySignLeavesOnly(t *testing.T) {
	a, _ := newAuthority(t, time.Hour)
	root := a.Certificate()
	if !root.IsCA || !root.MaxPathLenZero || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || root.URIs[0].String() != "spiffe://cluster.local" {
		t.Fatalf("%+v", root)
	}
}

// Each change is one that the linter has to stop before the CA's key signs it.
func TestLintStopsWhatBreaksTheSpecification(t *testing.T) {
	a, _ := newAuthority(t, 24*time.Hour)
	r := Request{ID: identity(t), PublicKey: newKey(t).Public(), TTL: time.Hour, Pod: spiffe.Pod{Name: "payroll-1", UID: "u1", Node: "node1"}}
	counted := &countedKey{Signer: a.key}
	a.key = counted
	extension := func(p spiffe.Pod) pkix.Extension {
		e, err := p.Extension()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	foreign := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/finance/sa/admin"}
	for name, spoil := range map[string]func(*x509.Certificate){
		"another identity":     func(c *x509.Certificate) { c.URIs = []*url.URL{foreign} },
		"two identities":       func(c *x509.Certificate) { c.URIs = append(c.URIs, foreign) },
		"no identity":          func(c *x509.Certificate) { c.URIs = nil },
		"CA:TRUE":              func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign },
		"certificate signing":  func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"CRL signing":          func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign },
		"no digital signature": func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement },
		"code signing":         func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) },
		"DNS name":             func(c *x509.Certificate) { c.DNSNames = []string{"kubernetes.default.svc"} },
		"IP address":           func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} },
		"e-mail address":       func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.c"} },
		"subject":              func(c *x509.Certificate) { c.Subject.CommonName = "root" },
		"longer than the CA":   func(c *x509.Certificate) { c.NotAfter = start.Add(25 * time.Hour) },
		"no pod":               func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"another pod": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{extension(spiffe.Pod{Name: "payroll-2", UID: "u1", Node: "node1"})}
		},
		"a critical pod":      func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = true },
		"bytes after the pod": func(c *x509.Certificate) { c.ExtraExtensions[0].Value = append(c.ExtraExtensions[0].Value, 5, 0) },
		"key usage that is not critical": func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{2, 5, 29, 15}, Value: []byte{3, 2, 7, 0x80}})
		},
		"an unknown extension": func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Value: []byte{5, 0}})
		},
	} {
		template, err := profile(r, start, a.cert.NotAfter)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.sign(template, r); err != nil {
			t.Fatalf("unspoiled: %v", err)
		}
		spoil(template)
		before := counted.signatures
		if _, err := a.sign(template, r); err == nil {
			t.Errorf("%s: passed", name)
		}
		if counted.signatures != before {
			t.Errorf("%s: signed with the CA's key", name)
		}
	}
}

// Each change is one that the linter has to stop before a root is signed with its own key.
func TestLintStopsARootThatBreaksTheSpecification(t *testing.T) {
	key := &countedKey{Signer: newKey(t)}
	workload := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/finance/sa/payroll"}
	for name, spoil := range map[string]func(*x509.Certificate){
		"CA:FALSE":               func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false },
		"no basic constraints":   func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA, c.MaxPathLenZero = false, false, false },
		"no certificate signing": func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign },
		"digital signature":      func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature },
		"key encipherment":       func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment },
		"client use":             func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
		"any use":                func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"a workload's identity":  func(c *x509.Certificate) { c.URIs = []*url.URL{workload} },
		"an identity more":       func(c *x509.Certificate) { c.URIs = append(c.URIs, workload) },
		"another trust domain":   func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "other.domain"}} },
		"no identity":            func(c *x509.Certificate) { c.URIs = nil },
		"a path length of 1":     func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 1, false },
		"no path length":         func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = -1, false },
		"no name constraint":     func(c *x509.Certificate) { c.PermittedURIDomains = nil },
		"another's name constraint": func(c *x509.Certificate) {
			c.PermittedURIDomains = append(c.PermittedURIDomains, "other.domain")
		},
		"a name constraint that may be ignored": func(c *x509.Certificate) { c.PermittedDNSDomainsCritical = false },
		"key usage that may be ignored": func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: keyUsageID, Value: []byte{3, 2, 1, 6}})
		},
		"an unknown extension": func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Value: []byte{5, 0}})
		},
		"no name":           func(c *x509.Certificate) { c.Subject = pkix.Name{} },
		"a DNS name":        func(c *x509.Certificate) { c.DNSNames = []string{"kubernetes.default.svc"} },
		"an IP address":     func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} },
		"an end before now": func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(-time.Hour) },
	} {
		template, err := rootProfile("cluster.local", start, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		root, err := signRoot(template, "cluster.local", key)
		if err != nil || root.CheckSignatureFrom(root) != nil {
			t.Fatalf("unspoiled: %v", err)
		}
		spoil(template)
		before := key.signatures
		if _, err := signRoot(template, "cluster.local", key); err == nil {
			t.Errorf("%s: passed", name)
		}
		if key.signatures != before {
			t.Errorf("%s: signed with the root's key", name)
		}
	}
}

// countedKey counts what is signed with it.
type countedKey struct {
	crypto.Signer
	signatures int
}

func (k *countedKey) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.signatures++
	return k.Signer.Sign(r, digest, opts)
}

func TestCertificateNamesItsPod(t *testing.T) {
	a, _ := newAuthority(t, 24*time.Hour)
	r := Request{ID: identity(t), PublicKey: newKey(t).Public(), TTL: time.Hour}
	for _, pod := range []spiffe.Pod{{}, {Name: "payroll-1", UID: "0a1b", Node: "node1"}, {Name: strings.Repeat("n", 253), UID: "ü", Node: "n"}} {
		r.Pod = pod
		chain, err := a.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := spiffe.PodOf(chain[0]); err != nil || got != pod {
			t.Errorf("%v, %v; want %v", got, err, pod)
		}
	}
	for _, pod := range []spiffe.Pod{{Name: "payroll-1"}, {Name: "p", UID: "u"}, {Name: "p", UID: "u", Node: strings.Repeat("n", 300)}, {Name: "\xff", UID: "u", Node: "n"}} {
		r.Pod = pod
		if _, err := a.Issue(r); err == nil {
			t.Errorf("%q: issued", pod)
		}
	}
}

func TestWeakKeysAreRefused(t *testing.T) {
	rsaKey := func(bits int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}
	}
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edward, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key    crypto.PublicKey
		reason string
	}{
		"RSA 1024":     {rsaKey(1024), "1024 bits"},
		"RSA 2047":     {rsaKey(2047), "2047 bits"},
		"RSA 16384":    {rsaKey(16384), "16384 bits"},
		"exponent 1":   {&rsa.PublicKey{N: good.N, E: 1}, "exponent 1"},
		"exponent 3":   {&rsa.PublicKey{N: good.N, E: 3}, "exponent 3"},
		"small factor": {&rsa.PublicKey{N: new(big.Int).Mul(big.NewInt(3), prime(t, 2046)), E: 65537}, "small factor"},
		"close primes": {&rsa.PublicKey{N: closePrimes(t), E: 65537}, "close to each other"},
		"P-224":        {p224.Public(), "P-224"},
		//lint:ignore SA1019 no other way makes a point that is not on the curve
		"off the curve":  {&ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}, "not on the curve"},
		"Ed25519":        {edward, "use ECDSA or RSA"},
		"nothing":        {nil, "use ECDSA or RSA"},
		"ROCA":           {&rsa.PublicKey{N: rocaModulus(t), E: 65537}, "ROCA"},
		"RSA of 2049":    {rsaKey(2049), "2049 bits"},
		"RSA of 4104":    {rsaKey(4104), "4104 bits"},
		"even RSA":       {&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537}, "small factor"},
		"exponent 65536": {&rsa.PublicKey{N: good.N, E: 65536}, "exponent 65536"},
	} {
		began := time.Now()
		err := CheckKey(c.key)
		var weak KeyError
		if !errors.As(err, &weak) || !strings.Contains(weak.Reason, c.reason) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("%s: took %s", name, took)
		}
	}
	if err := CheckKey(good.Public()); err != nil {
		t.Errorf("a good RSA key: %v", err)
	}
}

func prime(t *testing.T, bits int) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func closePrimes(t *testing.T) *big.Int {
	p := prime(t, 1024)
	q := new(big.Int).Add(p, big.NewInt(2))
	for !q.ProbablyPrime(10) {
		q.Add(q, big.NewInt(2))
	}
	return new(big.Int).Mul(p, q)
}

// rocaModulus returns a number whose residues are those of the flawed library: a power of 65537 modulo the product of
// the fingerprint's primes.
func rocaModulus(t *testing.T) *big.Int {
	m := big.NewInt(1)
	for _, p := range rocaPrimes {
		m.Mul(m, big.NewInt(p))
	}
	residue := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123456789), m)
	for {
		k, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(2047-m.BitLen())))
		if err != nil {
			t.Fatal(err)
		}
		k.Add(k, new(big.Int).Lsh(big.NewInt(1), uint(2047-m.BitLen())))
		n := new(big.Int).Add(residue, k.Mul(k, m))
		if n.BitLen() == 2048 && new(big.Int).GCD(nil, nil, n, smallPrimes).Cmp(big.NewInt(1)) == 0 {
			return n
		}
	}
}

func TestMaterialThatDoesNotFitIsRefused(t *testing.T) {
	one, err := NewRoot("cluster.local", P256, start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	two, err := NewRoot("cluster.local", P256, start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	clock := testclock.NewFakePassiveClock(start)
	for name, m := range map[string]Material{
		"key of another CA":                      {Cert: one.Cert, Key: two.Key, Root: one.Root},
		"root of another CA":                     {Cert: one.Cert, Key: one.Key, Root: two.Root},
		"nothing":                                {},
		"no root":                                {Cert: one.Cert, Key: one.Key},
		"cut off key":                            {Cert: one.Cert, Key: one.Key[:40], Root: one.Root},
		"rubbish after a root":                   {Cert: one.Cert, Key: one.Key, Root: append(bytes.Clone(one.Root), "rubbish"...)},
		"key instead of root":                    {Cert: one.Cert, Key: one.Key, Root: one.Key},
		"an intermediate whose root allows none": ladder(t, 0, -1),
		"an intermediate beneath one, whose root allows one":          ladder(t, 1, -1, -1),
		"an intermediate beneath one that allows none":                ladder(t, -1, 0, -1),
		"an intermediate beneath two, the upper of which allows none": ladder(t, -1, 0, 5, 0),
	} {
		if _, err := New(m, clock); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, m := range map[string]Material{
		"an intermediate whose root allows one":             ladder(t, 1, 0),
		"an intermediate beneath one that allows one":       ladder(t, 2, 1, 0),
		"three intermediates, of whom nobody says how many": ladder(t, -1, -1, -1, -1),
	} {
		a, err := New(m, clock)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := a.Try(identity(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(one, testclock.NewFakePassiveClock(start.Add(2*time.Hour))); err == nil {
		t.Error("an expired CA: accepted")
	}
}

// ladder returns the lowest of CAs beneath each other, the root first, with the given path lengths, -1 for none.
func ladder(t *testing.T, lengths ...int) Material {
	t.Helper()
	var parent *x509.Certificate
	var above []*x509.Certificate // from the lowest to the root
	var key, parentKey crypto.Signer
	for n, length := range lengths {
		template, err := rootProfile("cluster.local", start, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		template.Subject.CommonName = fmt.Sprint("CA ", n)
		template.MaxPathLen, template.MaxPathLenZero = length, length == 0
		if key = newKey(t); n == 0 {
			parent, parentKey = template, key
		}
		parent = signedBy(t, template, parent, key.Public(), parentKey)
		above, parentKey = append([]*x509.Certificate{parent}, above...), key
	}
	keyPEM, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	root := len(above) - 1
	return Material{Cert: EncodeCerts(above[:1]), Chain: EncodeCerts(above[:root]), Root: EncodeCerts(above[root:]), Key: keyPEM}
}

// plugged returns an intermediate under a root of its own.
func plugged(t *testing.T, rootTTL, ttl time.Duration) Material {
	t.Helper()
	rootKey, interKey := newKey(t), newKey(t)
	root, err := rootProfile("cluster.local", start, rootTTL)
	if err != nil {
		t.Fatal(err)
	}
	root.MaxPathLenZero = false
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	rootCert, _ := x509.ParseCertificate(rootDER)
	inter, err := rootProfile("cluster.local", start, ttl)
	if err != nil {
		t.Fatal(err)
	}
	inter.Subject.CommonName = "intermediate"
	interDER, err := x509.CreateCertificate(rand.Reader, inter, rootCert, interKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	interCert, _ := x509.ParseCertificate(interDER)
	der, err := x509.MarshalECPrivateKey(interKey)
	if err != nil {
		t.Fatal(err)
	}
	return Material{
		Cert: EncodeCerts([]*x509.Certificate{interCert}), Chain: EncodeCerts([]*x509.Certificate{interCert, rootCert}),
		Root: EncodeCerts([]*x509.Certificate{rootCert}), Key: pemBlock("EC PRIVATE KEY", der),
	}
}

// A leaf's identity in a signing certificate would let it be taken for the leaf (X509-SVID, 3.2).
func TestSigningCertificateHasNoWorkloadsIdentity(t *testing.T) {
	key := newKey(t)
	for path, want := range map[string]bool{"": true, "/ns/finance/sa/payroll": false, "/": false} {
		root, err := rootProfile("cluster.local", start, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		root.URIs[0].Path = path
		der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		keyPEM, err := EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		cert := pemBlock("CERTIFICATE", der)
		if _, err := New(Material{Cert: cert, Root: cert, Key: keyPEM}, testclock.NewFakePassiveClock(start)); (err == nil) != want {
			t.Errorf("path %q: %v", path, err)
		}
	}
}

// Whatever of a chain ends first, a certificate does not outlive it.
func TestCertificateNeverOutlivesTheRoot(t *testing.T) {
	for name, c := range map[string]struct{ root, intermediate, want time.Duration }{
		"the root ends first":         {20 * time.Hour, 50 * time.Hour, 20 * time.Hour},
		"the intermediate ends first": {50 * time.Hour, 20 * time.Hour, 20 * time.Hour},
	} {
		a, err := New(plugged(t, c.root, c.intermediate), testclock.NewFakePassiveClock(start))
		if err != nil {
			t.Fatal(err)
		}
		chain, err := a.Issue(Request{ID: identity(t), PublicKey: newKey(t).Public(), TTL: 40 * time.Hour})
		if err != nil || !chain[0].NotAfter.Equal(start.Add(c.want).Truncate(time.Second)) {
			t.Errorf("%s: %v, %v", name, chain[0].NotAfter, err)
		}
	}
}

func TestPluggedInIntermediateIsSentWithTheLeaf(t *testing.T) {
	m := plugged(t, 100*time.Hour, 50*time.Hour)
	other, err := NewRoot("cluster.local", P256, start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	wrong := m
	wrong.Key = other.Key
	if _, err := New(wrong, testclock.NewFakePassiveClock(start)); err == nil {
		t.Fatal("accepted with another key")
	}
	a, err := New(m, testclock.NewFakePassiveClock(start))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(Request{ID: identity(t), PublicKey: newKey(t).Public(), TTL: time.Hour})
	if err != nil || len(chain) != 2 || !chain[1].Equal(a.Certificate()) {
		t.Fatalf("chain of %d, %v", len(chain), err)
	}
	bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("cluster.local"), a.Roots())
	if _, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(start)); err != nil {
		t.Fatal(err)
	}
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
