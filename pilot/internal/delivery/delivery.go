// Package delivery is how the certificate of a pod comes to its proxy.
package delivery

// Way is one of the ways.
type Way string

// The ways, as injection writes them down in the annotation of a pod.
const (
	ByAgent  Way = ""       // over the pod's socket
	BySecret Way = "secret" // from the account's Secret, mounted into the proxy
)

// Label, on a namespace or a pod, chooses the way: "agent" or "secret". The pod's own goes first.
const Label = "bulwark.dev/identity"
