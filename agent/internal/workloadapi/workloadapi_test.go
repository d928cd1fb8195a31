package workloadapi_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
	api "github.com/bulwark-mesh/bulwark/agent/internal/workloadapi"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	payroll = "spiffe://cluster.local/ns/finance/sa/payroll"
	web     = "spiffe://cluster.local/ns/finance/sa/web"
)

func socket(n *identitytest.Node, p *identity.Identity) string {
	return n.Socket(func(s grpc.ServiceRegistrar) { api.Attach(n.Bundle)(p, s) })
}

func start(t *testing.T) (*identitytest.Node, *identity.Identity, string) {
	t.Helper()
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p := n.Pod("finance", "payroll-1", "payroll")
	n.Ready(p)
	return n, p, socket(n, p)
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestApplicationsSpeakMutualTLSByTheAPIAlone(t *testing.T) {
	n, _, path := start(t)
	p := n.Pod("finance", "web-1", "web")
	ctx := deadline(t)
	source := func(path string) *workloadapi.X509Source {
		s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+path)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	serverSource, clientSource := source(path), source(socket(n, p))
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(serverSource, serverSource, tlsconfig.AuthorizeID(spiffeid.RequireFromString(web))))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
		fmt.Fprint(w, id, err)
	})}
	go server.Serve(l)
	defer server.Close()
	get := func(id string) (string, error) {
		transport := &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(clientSource, clientSource, tlsconfig.AuthorizeID(spiffeid.RequireFromString(id)))}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("https://" + l.Addr().String())
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := get(payroll); err != nil || got != web+" <nil>" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := get(web); err == nil {
		t.Fatal("the client takes another for payroll")
	}
	// Through a root rotation: the new root is trusted by both before anyone is signed by it.
	next := svidtest.New(t, "cluster.local")
	n.Citadel.Publish(n.CA.Message(2, next.Cert))
	n.Eventually("both trust the new root", func() bool {
		for _, s := range []*workloadapi.X509Source{serverSource, clientSource} {
			b, err := s.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("cluster.local"))
			if err != nil || !b.HasX509Authority(next.Cert) {
				return false
			}
		}
		_, err := get(payroll)
		if err != nil {
			t.Fatal(err)
		}
		return true
	})
	n.Citadel.SignBy(next)
	n.Citadel.Publish(next.Message(3, n.CA.Cert))
	n.Eventually("both have certificates of the new root", func() bool {
		if _, err := get(payroll); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*workloadapi.X509Source{serverSource, clientSource} {
			got, err := s.GetX509SVID()
			if err != nil || got.Certificates[0].CheckSignatureFrom(next.Cert) != nil {
				return false
			}
		}
		return true
	})
}

func TestJWTSourceFetchesAndValidates(t *testing.T) {
	n, _, path := start(t)
	ctx := deadline(t)
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+path)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	got, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "ledger"})
	if err != nil || got.ID.String() != payroll {
		t.Fatalf("%v, %v", got, err)
	}
	// A peer that has only the bundle of the API verifies it.
	if _, err := jwtsvid.ParseAndValidate(got.Marshal(), source, []string{"ledger"}); err != nil {
		t.Fatal(err)
	}
	valid, err := workloadapi.ValidateJWTSVID(ctx, got.Marshal(), "ledger", workloadapi.WithAddr("unix://"+path))
	if err != nil || valid.ID.String() != payroll || valid.Claims["sub"] != payroll {
		t.Fatalf("%v, %v", valid, err)
	}
	for range 10 {
		again, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "ledger"})
		if err != nil || again.Marshal() != got.Marshal() {
			t.Fatalf("another token within half of its life: %v", err)
		}
	}
	if asked := n.Citadel.Tokens(); asked != 1 {
		t.Fatalf("Citadel was asked %d times", asked)
	}
	both, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "b", ExtraAudiences: []string{"a", "b"}})
	if err != nil || strings.Join(both.Audience, ",") != "a,b" {
		t.Fatalf("%v, %v", both, err)
	}
	if same, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b"}}); err != nil || same.Marshal() != both.Marshal() {
		t.Fatalf("the same audiences in another order: %v", err)
	}
}

func TestManyCallsAtOnceAskCitadelOnce(t *testing.T) {
	n, _, path := start(t)
	client := workload.NewSpiffeWorkloadAPIClient(n.Dial(path))
	ctx := metadata.AppendToOutgoingContext(deadline(t), "workload.spiffe.io", "true")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"ledger"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if asked := n.Citadel.Tokens(); asked != 1 {
		t.Fatalf("Citadel was asked %d times", asked)
	}
}

func TestTokensOutliveTheAPIServerByTheCertificate(t *testing.T) {
	n, _, path := start(t)
	n.Citadel.Fail(status.Error(codes.Unavailable, "the API server cannot review the token"))
	client := workload.NewSpiffeWorkloadAPIClient(n.Dial(path))
	ctx := metadata.AppendToOutgoingContext(deadline(t), "workload.spiffe.io", "true")
	if _, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"ledger"}}); err != nil {
		t.Fatal(err)
	}
	n.Citadel.Fail(status.Error(codes.PermissionDenied, "the pod is gone"))
	if _, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"other"}}); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("%v", err)
	}
}

func TestRememberedTokensAreBounded(t *testing.T) {
	n, _, path := start(t)
	client := workload.NewSpiffeWorkloadAPIClient(n.Dial(path))
	ctx := metadata.AppendToOutgoingContext(deadline(t), "workload.spiffe.io", "true")
	for i := range 100 {
		if _, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	before := n.Citadel.Tokens()
	for i := range 100 {
		if _, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{fmt.Sprint(99 - i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if again := n.Citadel.Tokens() - before; again < 36 || again > 100 {
		t.Fatalf("%d of 100 audiences were asked for again; 64 are remembered", again)
	}
}

// TestSpecification has a case for each MUST of the SPIFFE Workload API, of X509-SVID and of JWT-SVID that a server of the
// API can break. WA is the Workload API specification.
func TestSpecification(t *testing.T) {
	n, p, path := start(t)
	client := workload.NewSpiffeWorkloadAPIClient(n.Dial(path))
	bare := deadline(t)
	ctx := metadata.AppendToOutgoingContext(bare, "workload.spiffe.io", "true")
	fetchX509 := func(ctx context.Context) (*workload.X509SVIDResponse, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			return nil, err
		}
		return s.Recv()
	}
	every := map[string]func(context.Context) error{
		"FetchX509SVID": func(ctx context.Context) error { _, err := fetchX509(ctx); return err },
		"FetchX509Bundles": func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"FetchJWTBundles": func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"FetchJWTSVID": func(ctx context.Context) error {
			_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
			return err
		},
		"ValidateJWTSVID": func(ctx context.Context) error {
			token, err := n.CA.Token(payroll, []string{"a"}, time.Now().Add(time.Hour))
			if err != nil {
				return err
			}
			_, err = client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: token})
			return err
		},
	}
	for name, call := range every {
		t.Run("WA 3: "+name+" without the security header is refused", func(t *testing.T) {
			for _, c := range []context.Context{bare, metadata.AppendToOutgoingContext(bare, "workload.spiffe.io", "false"), metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")} {
				if err := call(c); status.Code(err) != codes.InvalidArgument {
					t.Fatal(err)
				}
			}
			if err := call(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("WA 5.1, X509-SVID 5: the SVID, its chain, its PKCS #8 key and the bundle fit each other", func(t *testing.T) {
		resp, err := fetchX509(ctx)
		if err != nil || len(resp.GetSvids()) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		s := resp.GetSvids()[0]
		got, err := x509svid.ParseRaw(s.GetX509Svid(), s.GetX509SvidKey())
		if err != nil || got.ID.String() != payroll || s.GetSpiffeId() != payroll {
			t.Fatalf("%v, %v", s.GetSpiffeId(), err)
		}
		if _, _, err := x509svid.Verify(got.Certificates, n.CA.Bundle()); err != nil {
			t.Fatal(err)
		}
		if string(s.GetBundle()) != string(n.CA.Cert.Raw) {
			t.Fatal("the bundle is not the root's ASN.1 DER")
		}
	})
	t.Run("WA 4.1: the stream stays open and brings each update", func(t *testing.T) {
		s, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		first, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		p.Renew()
		second, err := s.Recv()
		if err != nil || string(second.GetSvids()[0].GetX509Svid()) == string(first.GetSvids()[0].GetX509Svid()) {
			t.Fatalf("no update: %v", err)
		}
	})
	t.Run("WA 5.2: bundles are by trust domain ID, as DER or JWK sets", func(t *testing.T) {
		x, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr("unix://"+path))
		if err != nil || x.Len() != 1 {
			t.Fatalf("%v, %v", x, err)
		}
		j, err := workloadapi.FetchJWTBundles(ctx, workloadapi.WithAddr("unix://"+path))
		if err != nil || j.Len() != 1 {
			t.Fatalf("%v, %v", j, err)
		}
		b, err := j.GetJWTBundleForTrustDomain(spiffeid.RequireTrustDomainFromString("cluster.local"))
		if err != nil || len(b.JWTAuthorities()) != 1 {
			t.Fatalf("%v, %v", b, err)
		}
	})
	for name, c := range map[string]struct {
		request *workload.JWTSVIDRequest
		code    codes.Code
	}{
		"WA 6.1: no audience":         {&workload.JWTSVIDRequest{}, codes.InvalidArgument},
		"WA 6.1: an empty audience":   {&workload.JWTSVIDRequest{Audience: []string{"a", ""}}, codes.InvalidArgument},
		"too many audiences":          {&workload.JWTSVIDRequest{Audience: strings.Split(strings.Repeat("a,", 20)+"a", ",")}, codes.InvalidArgument},
		"WA 6.1: its own ID":          {&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: payroll}, codes.OK},
		"WA 6.1: the ID of another":   {&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: web}, codes.PermissionDenied},
		"WA 6.1: an ID that is no ID": {&workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "x"}, codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := client.FetchJWTSVID(ctx, c.request)
			if status.Code(err) != c.code {
				t.Fatal(err)
			}
			if err == nil && (len(got.GetSvids()) != 1 || got.GetSvids()[0].GetSpiffeId() != payroll) {
				t.Fatalf("%v", got)
			}
		})
	}
	now := time.Now()
	sign := func(ca *svidtest.CA, subject string, audience []string, expires time.Time) string {
		token, err := ca.Token(subject, audience, expires)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(n.CA, web, []string{"a", "b"}, now.Add(time.Hour))
	for name, c := range map[string]struct {
		audience, token string
		ok              bool
	}{
		"JWT-SVID 4: a good token":                      {"b", good, true},
		"WA 6.3: no audience":                           {"", good, false},
		"WA 6.3: no token":                              {"a", "", false},
		"JWT-SVID 3.2: for another audience":            {"c", good, false},
		"JWT-SVID 3.3: expired":                         {"a", sign(n.CA, web, []string{"a"}, now.Add(-time.Hour)), false},
		"JWT-SVID 3.1: the subject is no SPIFFE ID":     {"a", sign(n.CA, "web", []string{"a"}, now.Add(time.Hour)), false},
		"JWT-SVID 3.1: a foreign trust domain":          {"a", sign(n.CA, "spiffe://other.domain/x", []string{"a"}, now.Add(time.Hour)), false},
		"JWT-SVID 2.3: signed by a key not in bundle":   {"a", sign(svidtest.New(t, "cluster.local"), web, []string{"a"}, now.Add(time.Hour)), false},
		"JWT-SVID 2.1: not signed (alg none)":           {"a", "eyJhbGciOiJub25lIiwia2lkIjoidGVzdC1rZXkifQ." + strings.Split(good, ".")[1] + ".", false},
		"JWT-SVID 2: a token that was changed":          {"a", strings.Replace(good, ".", ".x", 1), false},
		"a token that is longer than any":               {"a", good + strings.Repeat("a", 1<<20), false},
		"JWT-SVID 3.2: no audience in the token":        {"a", sign(n.CA, web, nil, now.Add(time.Hour)), false},
		"JWT-SVID 2: JSON serialization is not compact": {"a", `{"payload":"x"}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: c.audience, Svid: c.token})
			if c.ok {
				if err != nil || got.GetSpiffeId() != web || got.GetClaims().GetFields()["sub"].GetStringValue() != web {
					t.Fatalf("%v, %v", got, err)
				}
				return
			}
			if status.Code(err) != codes.InvalidArgument {
				t.Fatalf("%v, %v", got, err)
			}
			if c.token != "" && len(c.token) > 20 && strings.Contains(err.Error(), c.token) {
				t.Error("the error quotes the token")
			}
		})
	}
}

func TestPodWithoutSVIDWaitsAndGetsNobodyElses(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	n.Citadel.Fail(status.Error(codes.Unavailable, "away"))
	p := n.Pod("finance", "payroll-1", "payroll")
	path := socket(n, p)
	client := workload.NewSpiffeWorkloadAPIClient(n.Dial(path))
	ctx := metadata.AppendToOutgoingContext(deadline(t), "workload.spiffe.io", "true")
	if _, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.Unavailable {
		t.Fatalf("%v", err)
	}
	s, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n.Citadel.Fail(nil)
	got, err := s.Recv()
	if err != nil || got.GetSvids()[0].GetSpiffeId() != payroll {
		t.Fatalf("%v, %v", got, err)
	}
	n.Eventually("what was sent counts as taken", func() bool {
		all := p.Clients()
		return len(all) == 1 && all[0].Trusts && all[0].Sequence == 1 && len(all[0].Issuers) == 1
	})
}
