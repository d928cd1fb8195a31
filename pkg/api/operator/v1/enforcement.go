package operatorv1

// The types of the conditions in the status of a policy.
const (
	EnforceableCondition = "bulwark.dev/Enforceable" // whether it can be enforced as it is written; on policies that could not be
	EnforcedCondition    = "bulwark.dev/Enforced"    // whether all proxies that it selects have acknowledged it
)

// Enforcement says how many proxies have acknowledged a policy.
type Enforcement struct {
	Kind       string    `json:"kind"`
	Namespace  string    `json:"namespace"`
	Name       string    `json:"name"`
	Generation int64     `json:"generation"`          // of the policy, that the numbers are about
	Proxies    int       `json:"proxies"`             // of pods that it selects
	Enforced   int       `json:"enforced"`            // of them, those that have acknowledged it
	Lagging    []Laggard `json:"lagging"`             // the others
	Unsettled  string    `json:"unsettled,omitempty"` // why the numbers may be of another generation, if they may
}

// Laggard is a proxy that has not acknowledged a policy.
type Laggard struct {
	Proxy  string `json:"proxy"` // <pod>.<namespace>
	Reason string `json:"reason"`
}
