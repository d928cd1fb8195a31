package operatorapi

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	authv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktest "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func TestOnlyTheOperatorsTokenOpens(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(a ktest.Action) (bool, runtime.Object, error) {
		review := a.(ktest.CreateAction).GetObject().(*authv1.TokenReview)
		switch review.Spec.Token {
		case "good":
			review.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: operatorUser}, Audiences: []string{mesh.OperatorAudience}}
		case "other-account":
			review.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: "system:serviceaccount:default:default"}, Audiences: []string{mesh.OperatorAudience}}
		case "other-audience":
			review.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: operatorUser}, Audiences: []string{"api"}}
		case "away":
			return true, nil, errors.New("no API server")
		}
		return true, review, nil
	})
	s := New(client.AuthenticationV1().TokenReviews(), slog.New(slog.DiscardHandler))
	s.HandleJSON("GET /v1/x", func(*http.Request) (any, error) { return "x", nil })
	for token, want := range map[string]int{"": 401, "bad": 403, "other-account": 403, "other-audience": 403, "away": 403, "good": 200} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/x", nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("token %q: status %d, want %d", token, w.Code, want)
		}
	}
}
