package run

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
	"github.com/bulwark-mesh/bulwark/citadel/internal/conductor"
	"github.com/bulwark-mesh/bulwark/citadel/internal/origin"
	"github.com/bulwark-mesh/bulwark/citadel/internal/revoke"
	"github.com/bulwark-mesh/bulwark/citadel/internal/rotate"
	"github.com/bulwark-mesh/bulwark/citadel/internal/store"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/operatorapi"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const payroll = "spiffe://cluster.local/ns/finance/sa/payroll"

// trail is where the audit events go.
type trail struct {
	mu     sync.Mutex
	events []*telemetryv1.Event
}

func (t *trail) Append(e *telemetryv1.Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
	return true
}

func (t *trail) last() *telemetryv1.Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) == 0 {
		return &telemetryv1.Event{}
	}
	return t.events[len(t.events)-1]
}

// desk is the operator API of a Citadel whose cluster is a fake one.
type desk struct {
	t      *testing.T
	client *fake.Clientset
	api    *operatorapi.Server
	trail  *trail
	store  *store.Store
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenReview)
		review.Status = authv1.TokenReviewStatus{
			Authenticated: review.Spec.Token == "operator", Audiences: []string{mesh.OperatorAudience},
			User: authv1.UserInfo{Username: "system:serviceaccount:" + mesh.Namespace + ":" + mesh.OperatorAccount},
		}
		return true, review, nil
	})
	reg, sink := prometheus.NewRegistry(), &trail{}
	settings := Defaults()
	origins := &origin.Origins{Client: client, Rotation: settings.rotation(), Clock: clock.RealClock{}}
	vault := store.New(client, settings.rotation(), clock.RealClock{}, origins.First, reg, quiet)
	if err := vault.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	revocations := revoke.New(client, clock.RealClock{}, reg, quiet)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = revocations.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	for deadline := time.Now().Add(10 * time.Second); revocations.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(revocations.Ready())
		}
	}
	d := &desk{t: t, client: client, api: operatorapi.New(client.AuthenticationV1().TokenReviews(), quiet), trail: sink, store: vault}
	l := &leader{settings: settings, store: vault, log: quiet, conductor: &conductor.Conductor{Store: vault, Origins: origins, Config: settings.rotation(), Clock: clock.RealClock{}, Log: quiet}}
	(&operator{
		leader: l, origins: origins, revocations: revocations, trustDomain: settings.TrustDomain,
		audit: auditlog.New(sink, &telemetryv1.Workload{Pod: "bulwark-citadel-1"}, clock.RealClock{}, reg),
	}).register(d.api)
	return d
}

// call returns the status and body of a call; in is its JSON.
func (d *desk) call(method, path, in string) (int, string) {
	d.t.Helper()
	r := httptest.NewRequestWithContext(d.t.Context(), method, path, strings.NewReader(in))
	r.Header.Set("Authorization", "Bearer operator")
	w := httptest.NewRecorder()
	d.api.ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

func (d *desk) stored() string {
	d.t.Helper()
	cm, err := d.client.CoreV1().ConfigMaps(mesh.Namespace).Get(d.t.Context(), mesh.RevocationsConfig, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	return cm.Data[revocation.ConfigKey]
}

func inAnHour() string { return time.Now().Add(time.Hour).UTC().Format(time.RFC3339) }

func TestRevocationIsListedStoredAndUndoneAndEachIsAudited(t *testing.T) {
	d := newDesk(t)
	if code, body := d.call(http.MethodGet, "/v1/revocations", ""); code != http.StatusOK || body != "[]" {
		t.Fatalf("%d %s", code, body)
	}
	code, body := d.call(http.MethodPost, "/v1/revocations",
		`{"identity":"`+payroll+`","serial":"ab12","podUID":"u1","reason":"stolen","by":"alice","expires":"`+inAnHour()+`","created":"1999-01-01T00:00:00Z"}`)
	var made revocation.Revocation
	if err := json.Unmarshal([]byte(body), &made); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	if !strings.HasPrefix(made.Name, "payroll-") || time.Since(made.Created).Abs() > time.Minute || made.Serial != "ab12" || made.PodUID != "u1" || made.By != "alice" {
		t.Errorf("made %+v", made)
	}
	if e := d.trail.last(); e.Kind != telemetryv1.Kind_KIND_ADMIN || e.Verdict != telemetryv1.Verdict_VERDICT_ALLOWED || e.Method != "Revoke" ||
		e.DestinationIdentity != payroll || e.CertificateSerial != "ab12" || e.Reason != "by alice: stolen" || e.SourceAddress == "" {
		t.Errorf("audited %v", e)
	}
	if !strings.Contains(d.stored(), made.Name) {
		t.Errorf("stored: %s", d.stored())
	}
	if _, body := d.call(http.MethodGet, "/v1/revocations", ""); !strings.Contains(body, made.Name) {
		t.Errorf("listed: %s", body)
	}
	if code, body := d.call(http.MethodDelete, "/v1/revocations/"+made.Name+"?by=bob", ""); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	if e := d.trail.last(); e.Method != "Restore" || e.DestinationIdentity != payroll || e.CertificateSerial != "ab12" || e.Reason != "by bob: "+made.Name {
		t.Errorf("audited %v", e)
	}
	if strings.Contains(d.stored(), made.Name) {
		t.Errorf("stored: %s", d.stored())
	}
}

func TestRevocationThatMustNotBeIsRefusedAndAudited(t *testing.T) {
	citadel := "spiffe://cluster.local/ns/bulwark-system/sa/bulwark-citadel"
	for name, c := range map[string]struct{ in, want string }{
		"control plane":        {`{"identity":"` + citadel + `","expires":"` + inAnHour() + `"}`, "control plane"},
		"other trust domain":   {`{"identity":"spiffe://elsewhere/ns/a/sa/b","expires":"` + inAnHour() + `"}`, "not of this mesh"},
		"no identity":          {`{"serial":"ab","expires":"` + inAnHour() + `"}`, "identity"},
		"no end":               {`{"identity":"` + payroll + `"}`, "ends after it began"},
		"past":                 {`{"identity":"` + payroll + `","expires":"2020-01-01T00:00:00Z"}`, "ends after it began"},
		"upper-case serial":    {`{"identity":"` + payroll + `","serial":"AB","expires":"` + inAnHour() + `"}`, "lower-case"},
		"pod without a serial": {`{"identity":"` + payroll + `","podUID":"u","expires":"` + inAnHour() + `"}`, "serial number"},
		"novel":                {`{"identity":"` + payroll + `","reason":"` + strings.Repeat("x", maxWords+1) + `","expires":"` + inAnHour() + `"}`, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			if code, body := d.call(http.MethodPost, "/v1/revocations", c.in); code != http.StatusBadRequest || !strings.Contains(body, c.want) {
				t.Errorf("%d %s", code, body)
			}
			if e := d.trail.last(); e.Verdict != telemetryv1.Verdict_VERDICT_REFUSED || e.Kind != telemetryv1.Kind_KIND_ADMIN {
				t.Errorf("audited %v", e)
			}
			if s := d.stored(); s != "" {
				t.Errorf("stored %s", s)
			}
		})
	}
	d := newDesk(t)
	if code, body := d.call(http.MethodPost, "/v1/revocations", `{"identity":"`+citadel+`","force":true,"expires":"`+inAnHour()+`"}`); code != http.StatusOK {
		t.Errorf("forced: %d %s", code, body)
	}
	for _, in := range []string{"", "nonsense", `{"identity":"` + payroll + `","colour":"red"}`} {
		if code, _ := d.call(http.MethodPost, "/v1/revocations", in); code != http.StatusBadRequest {
			t.Errorf("%q: %d", in, code)
		}
	}
	if code, body := d.call(http.MethodDelete, "/v1/revocations/nobody", ""); code != http.StatusBadRequest || !strings.Contains(body, "no revocation nobody") {
		t.Errorf("undoing what is not there: %d %s", code, body)
	}
}

func TestWhatIsSaidToARotationIsAudited(t *testing.T) {
	d := newDesk(t)
	if code, _ := d.call(http.MethodPost, "/v1/ca/rotation", `{"action":"abort","by":"alice"}`); code != http.StatusBadRequest {
		t.Errorf("aborting nothing: %d", code)
	}
	if e := d.trail.last(); e.Method != "Rotation abort" || e.Verdict != telemetryv1.Verdict_VERDICT_REFUSED || !strings.Contains(e.Reason, rotate.ErrNone.Error()) {
		t.Errorf("audited %v", e)
	}
	if code, body := d.call(http.MethodPost, "/v1/ca/rotation", `{"action":"start","by":"alice"}`); code != http.StatusOK || !strings.Contains(body, `"publishing"`) {
		t.Fatalf("starting: %d %s", code, body)
	}
	if e := d.trail.last(); e.Method != "Rotation start" || e.Verdict != telemetryv1.Verdict_VERDICT_ALLOWED || e.Reason != "by alice" {
		t.Errorf("audited %v", e)
	}
	if phase := d.store.CA().Rotation.Phase; phase != rotate.Publishing {
		t.Errorf("phase %q", phase)
	}
	code, body := d.call(http.MethodGet, "/v1/ca", "")
	if code != http.StatusOK || strings.Contains(body, "PRIVATE") {
		t.Errorf("%d %s", code, body)
	}
}
