package bundle

import (
	"bytes"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
)

// Keys have no order in the document: made anew, it would differ, and each namespace would be written again and again.
func TestDocumentOfAStateIsAlwaysTheSame(t *testing.T) {
	state := &ca.State{Sequence: 7, Tokens: &ca.TokenKeys{}}
	for range 4 {
		key, err := ca.NewTokenKey(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		state.Tokens.Published = append(state.Tokens.Published, key)
	}
	documents := &Documents{TrustDomain: "cluster.local"}
	first, err := documents.Document(state)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if again, err := documents.Document(state); err != nil || !bytes.Equal(again, first) {
			t.Fatalf("another document of the same state: %v", err)
		}
	}
}
