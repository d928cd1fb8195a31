package admission

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
)

func post(t *testing.T, method, contentType, body string) *httptest.ResponseRecorder {
	t.Helper()
	h := Handler(func(_ context.Context, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return Allow("w")
	}, slog.New(slog.DiscardHandler))
	req := httptest.NewRequestWithContext(t.Context(), method, "/", strings.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

func TestReview(t *testing.T) {
	w := post(t, "POST", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u"}}`)
	var got admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if got.Response == nil || got.Response.UID != "u" || !got.Response.Allowed || got.Kind != "AdmissionReview" {
		t.Fatalf("got %+v", got)
	}
}

func TestWhatIsNoReviewIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, method, contentType, body string
		want                            int
	}{
		{"GET", "GET", "application/json", "", http.StatusMethodNotAllowed},
		{"YAML", "POST", "application/yaml", "a: b", http.StatusUnsupportedMediaType},
		{"nothing", "POST", "application/json", "", http.StatusBadRequest},
		{"no request", "POST", "application/json", "{}", http.StatusBadRequest},
		{"too big", "POST", "application/json", `{"a":"` + strings.Repeat("a", MaxBody) + `"}`, http.StatusRequestEntityTooLarge},
		{"too deep", "POST", "application/json", strings.Repeat("[", 100000), http.StatusBadRequest},
		{"deep object", "POST", "application/json", strings.Repeat(`{"a":`, 5000), http.StatusBadRequest},
	} {
		if got := post(t, c.method, c.contentType, c.body).Code; got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
