// Package kubeevent tells Events of Kubernetes apart.
package kubeevent

import (
	"crypto/sha256"
	"encoding/hex"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Apart is what an Event is related to of which no word may be lost, such as who had something done, or why it cannot be. Client-go's recorder (tools/events)
// takes Events that differ in their text alone for one, for six minutes and longer, and shows the text of the first; those that are related to something else
// are others. It is for what is said seldom: each text is an object in the API server.
func Apart(text string) *corev1.ObjectReference {
	sum := sha256.Sum256([]byte(text))
	return &corev1.ObjectReference{FieldPath: "note", UID: types.UID(hex.EncodeToString(sum[:8]))}
}
