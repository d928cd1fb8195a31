package identities

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const (
	payroll = "spiffe://cluster.local/ns/finance/sa/payroll"
	auditor = "spiffe://cluster.local/ns/finance/sa/auditor"
)

var now = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// leaf returns a certificate of payroll in PEM, and its key.
func leaf(t *testing.T, serial int64, from, until time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse(payroll)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: from, NotAfter: until, URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, SubjectKeyId: []byte{0xab, 0xcd, 0xef, 0x01, 0x23}}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: scalar})
}

func secret(data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "finance", Name: "bulwark.payroll"}, Data: data}
}

func TestSecretIsShownByItsCertificateAndNeverItsKey(t *testing.T) {
	cert, key := leaf(t, 0xab12, now.Add(-time.Hour), now.Add(23*time.Hour))
	for name, c := range map[string]struct {
		secret    *corev1.Secret
		schedule  Scheduled
		at        time.Time
		state     string
		serial    string
		lastError string
	}{
		"valid":            {secret(map[string][]byte{"cert-chain.pem": cert, "key.pem": key}), Scheduled{NextRenewal: now.Add(time.Hour)}, now, StateValid, "ab12", ""},
		"overdue":          {secret(map[string][]byte{"cert-chain.pem": cert, "key.pem": key}), Scheduled{NextRenewal: now.Add(-time.Minute), LastError: "quota"}, now, StateDue, "ab12", "quota"},
		"unknown schedule": {secret(map[string][]byte{"cert-chain.pem": cert}), Scheduled{}, now, StateValid, "ab12", ""},
		"expired":          {secret(map[string][]byte{"cert-chain.pem": cert, "key.pem": key}), Scheduled{NextRenewal: now}, now.Add(24 * time.Hour), StateExpired, "ab12", ""},
		"empty":            {secret(nil), Scheduled{}, now, StateDamaged, "", "there is no certificate"},
		"garbage":          {secret(map[string][]byte{"cert-chain.pem": []byte("x")}), Scheduled{}, now, StateDamaged, "", "there is no certificate"},
	} {
		e := OfSecret(c.secret, c.schedule, "cluster.local", c.at)
		if e.State != c.state || e.Serial != c.serial || e.LastError != c.lastError || e.Identity != payroll || e.HeldBy != (Holder{Kind: Secret, Namespace: "finance", Name: "bulwark.payroll"}) {
			t.Errorf("%s: %+v", name, e)
		}
		if (e.NextRenewal == nil) != c.schedule.NextRenewal.IsZero() && c.state != StateDamaged {
			t.Errorf("%s: next renewal %v", name, e.NextRenewal)
		}
		b, err := json.Marshal(e)
		if err != nil || strings.Contains(string(b), "PRIVATE") {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
}

func entries(t *testing.T) []Entry {
	t.Helper()
	cert, _ := leaf(t, 0xab12, now.Add(-time.Hour), now.Add(23*time.Hour))
	from, until := now.Add(-time.Hour), now.Add(11*time.Hour)
	return []Entry{
		OfSecret(secret(map[string][]byte{"cert-chain.pem": cert}), Scheduled{}, "cluster.local", now),
		OfWorkload(Workload{Namespace: "finance", Pod: "payroll-1", UID: "u1", Identity: payroll, State: "late", Serial: "c3", IssuerKeyID: "0123456789", NotBefore: &from, NotAfter: &until, NextRenewal: &from, LastError: "Citadel\nis away"}, "node1"),
		OfWorkload(Workload{Namespace: "finance", Pod: "auditor-1", UID: "u2", Identity: auditor, State: "pending"}, "node2"),
	}
}

func TestFiltersChoose(t *testing.T) {
	all := entries(t)
	Mark(all, revocation.List{{Name: "r", Identity: auditor, Expires: now.Add(time.Hour)}}, now)
	for name, c := range map[string]struct {
		filter Filter
		want   []string
	}{
		"everything":       {Filter{}, []string{"bulwark.payroll", "payroll-1", "auditor-1"}},
		"namespace":        {Filter{Namespace: "financ"}, nil},
		"identity":         {Filter{Identity: "finance/pay"}, []string{"bulwark.payroll", "payroll-1"}},
		"whole identity":   {Filter{Identity: auditor}, []string{"auditor-1"}},
		"state":            {Filter{State: "late"}, []string{"payroll-1"}},
		"revoked":          {Filter{State: StateRevoked}, []string{"auditor-1"}},
		"held by":          {Filter{HeldBy: Secret}, []string{"bulwark.payroll"}},
		"issuer":           {Filter{Issuer: "0123"}, []string{"payroll-1"}},
		"issuer, capitals": {Filter{Issuer: "ABCD"}, []string{"bulwark.payroll"}},
		"two":              {Filter{HeldBy: Pod, State: "pending"}, []string{"auditor-1"}},
	} {
		if err := c.filter.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, e := range c.filter.Apply(all) {
			got = append(got, e.HeldBy.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	for _, wrong := range []Filter{{HeldBy: "node"}, {State: "fine"}} {
		if wrong.Validate() == nil {
			t.Errorf("%+v is taken", wrong)
		}
	}
}

func TestRevokedAreMarked(t *testing.T) {
	for name, c := range map[string]struct {
		r    revocation.Revocation
		want []string
	}{
		"identity":             {revocation.Revocation{Identity: payroll}, []string{"bulwark.payroll", "payroll-1"}},
		"certificate of a pod": {revocation.Revocation{Identity: payroll, Serial: "c3", PodUID: "u1"}, []string{"payroll-1"}},
		"its next one":         {revocation.Revocation{Identity: payroll, Serial: "c2", PodUID: "u1"}, []string{"payroll-1"}},
		"other certificate":    {revocation.Revocation{Identity: payroll, Serial: "c2"}, nil},
	} {
		c.r.Name, c.r.Expires = "r", now.Add(time.Hour)
		all := entries(t)
		Mark(all, revocation.List{c.r}, now)
		var got []string
		for _, e := range all {
			if e.RevokedBy == "r" {
				got = append(got, e.HeldBy.Name)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		Mark(all, nil, now)
	}
}

func TestTableHasOneLineForEachAndNoLineBreaks(t *testing.T) {
	all := entries(t)
	Sort(all)
	Mark(all, revocation.List{{Name: "r", Identity: payroll, Serial: "c3", Expires: now.Add(time.Hour)}}, now)
	var out bytes.Buffer
	// columns has tabs between the columns.
	columns := func() string { return regexp.MustCompile(` {3,}`).ReplaceAllString(out.String(), "\t") }
	WriteTable(printer.New(&out), all, now)
	want := "IDENTITY\tHELD BY\tSERIAL\tISSUER\tAGE\tEXPIRES\tNEXT ROTATION\tSTATE\tLAST FAILURE\n" +
		"finance/auditor\tpod finance/auditor-1 on node2\t-\t-\t-\t-\t-\tpending\t-\n" +
		"finance/payroll\tpod finance/payroll-1 on node1\tc3\t01234567\t55m\tin 11h\t60m ago\trevoked\t\"Citadel\\nis away\"\n" +
		"finance/payroll\tsecret finance/bulwark.payroll\tab12\tabcdef01\t55m\tin 23h\t-\tvalid\t-\n"
	if columns() != want {
		t.Errorf("got\n%swant\n%s", columns(), want)
	}
	out.Reset()
	WriteRevocations(printer.New(&out), revocation.List{{Name: "r", Identity: payroll, Serial: "c3", By: "alice", Reason: "a\tb", Created: now.Add(-time.Minute), Expires: now.Add(time.Hour)}}, now)
	if want := "NAME\tIDENTITY\tCERTIFICATE\tAGE\tENDS\tBY\tREASON\nr\tfinance/payroll\tc3\t60s\tin 60m\talice\t\"a\\tb\"\n"; columns() != want {
		t.Errorf("got\n%swant\n%s", columns(), want)
	}
}

func TestWhatIsRevokedIsResolved(t *testing.T) {
	for text, want := range map[string]string{payroll: payroll, "finance/payroll": payroll, "payroll": "", "a/b/c": "", "spiffe://cluster.local/x": "", "Finance/payroll": ""} {
		if got, err := ParseIdentity(text, "cluster.local"); got != want && err == nil || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{"ab12": "ab12", "AB:12": "ab12", "0x0AB12": "ab12", "": "", "0": "", "-1": "", "xyz": ""} {
		if got, err := ParseSerial(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	all := entries(t)
	for name, c := range map[string]struct {
		serial, identity string
		uid              string
		fails            string
	}{
		"of a pod":             {"c3", "", "u1", ""},
		"of a pod, named":      {"c3", payroll, "u1", ""},
		"of a Secret":          {"ab12", "", "", ""},
		"of another":           {"c3", auditor, "", "is of " + payroll},
		"of nobody":            {"dd", "", "", "nobody shows"},
		"of nobody, but named": {"dd", payroll, "", ""},
	} {
		got, err := BySerial(all, c.serial, c.identity)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || got.Identity != payroll || got.Serial != c.serial || got.PodUID() != c.uid {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if uid := (Target{Identity: payroll, Holder: Holder{Kind: Pod, UID: "u1"}}).PodUID(); uid != "" {
		t.Errorf("a whole identity is revoked for pod %s", uid)
	}
}

func TestRevocationOfACertificateLastsAtLeastAsLongAsIt(t *testing.T) {
	for name, c := range map[string]struct {
		left time.Duration
		want time.Duration
	}{"short": {time.Hour, 24 * time.Hour}, "long": {30 * time.Hour, 30*time.Hour + time.Minute}} {
		end := now.Add(c.left)
		if got := (Target{Identity: payroll, Serial: "c3", NotAfter: &end}).DefaultFor(now); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := (Target{Identity: payroll}).DefaultFor(now); got != 24*time.Hour {
		t.Errorf("identity: %s", got)
	}
	end := now.Add(2 * time.Hour)
	said := strings.Join(Target{Identity: payroll, Serial: "c3", NotAfter: &end, Holder: Holder{Kind: Pod, Namespace: "finance", Name: "payroll-1"}}.Consequences(nil, now.Add(time.Hour)), "\n")
	for _, want := range []string{"use a longer --for", "delete pod payroll-1", "what is open, connections and streams, is ended"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in %s", want, said)
		}
	}
	said = strings.Join(Target{Identity: payroll}.Consequences(entries(t)[:2], now.Add(time.Hour)), "\n")
	for _, want := range []string{"held now by 1 pod, 1 secret", "as a server nobody connects"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in %s", want, said)
		}
	}
	said = strings.Join(Target{Identity: "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-pilot"}.Consequences(nil, now), "\n")
	for _, want := range []string{"nobody: is the name right?", "a part of the control plane"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in %s", want, said)
		}
	}
}
