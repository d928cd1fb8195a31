package ca

import (
	"testing"
	"time"
)

func BenchmarkIssue(b *testing.B) {
	a, _ := newAuthority(b, 24*time.Hour)
	r := Request{ID: identity(b), PublicKey: newKey(b).Public(), TTL: time.Hour}
	for b.Loop() {
		if _, err := a.Issue(r); err != nil {
			b.Fatal(err)
		}
	}
}
