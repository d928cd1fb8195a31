// Package admission is the HTTP side of Pilot's webhooks: it reads a review from whoever may reach the port, bounded in
// every way, and answers it.
package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bounds on a request. The API server's own limit for an object is 1.5 MiB, and a review holds two.
const (
	MaxBody  = 4 << 20
	maxDepth = 100
)

// Func answers one request of the API server.
type Func func(context.Context, *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

// Handler answers AdmissionReviews with f.
func Handler(f Func, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		review, code, err := read(w, r)
		if err != nil {
			http.Error(w, err.Error(), code)
			return
		}
		resp := f(r.Context(), review.Request)
		resp.UID = review.Request.UID
		w.Header().Set("Content-Type", "application/json")
		out := admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			log.Warn("answering an admission review", "error", err)
		}
	})
}

func read(w http.ResponseWriter, r *http.Request) (*admissionv1.AdmissionReview, int, error) {
	if r.Method != http.MethodPost {
		return nil, http.StatusMethodNotAllowed, errors.New("only POST")
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, http.StatusUnsupportedMediaType, errors.New("only application/json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		var tooBig *http.MaxBytesError
		if errors.As(err, &tooBig) {
			return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("more than %d bytes", MaxBody)
		}
		return nil, http.StatusBadRequest, fmt.Errorf("reading the review: %w", err)
	}
	if err := checkDepth(body); err != nil {
		return nil, http.StatusBadRequest, err
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("decoding the review: %w", err)
	}
	if review.Request == nil {
		return nil, http.StatusBadRequest, errors.New("the review has no request")
	}
	return &review, 0, nil
}

// checkDepth refuses JSON whose nesting would cost more than its size says.
func checkDepth(body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	depth := 0
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("decoding the review: %w", err)
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return fmt.Errorf("JSON nested deeper than %d", maxDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// Deny refuses a request for a reason that its sender can act on.
func Deny(message string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &meta.Status{Status: meta.StatusFailure, Code: http.StatusUnprocessableEntity,
		Reason: meta.StatusReasonInvalid, Message: message}}
}

// Allow lets a request through.
func Allow(warnings ...string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: warnings}
}
