package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
)

// webhook refuses every object, by name, so that it can be seen to have been asked.
func webhook(certs string) error {
	handler := func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Request    struct {
				UID string `json:"uid"`
			} `json:"request"`
		}
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"apiVersion":%q,"kind":%q,"response":{"uid":%q,"allowed":false,"status":{"message":"refused by the smoke test"}}}`,
			review.APIVersion, review.Kind, review.Request.UID)
	}
	return http.ListenAndServeTLS(":8443", filepath.Join(certs, "tls.crt"), filepath.Join(certs, "tls.key"), http.HandlerFunc(handler))
}
