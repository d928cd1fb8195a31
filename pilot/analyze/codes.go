package analyze

import (
	"slices"
	"strings"
)

// Code is a sort of finding. A code never changes its meaning, and one that is no longer used is not used again.
type Code struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"` // of a finding that is no guess; that is an info
	Title    string   `json:"title"`
}

// Doc is where docs/analyze.md explains it.
func (c Code) Doc() string { return "docs/analyze.md#" + strings.ToLower(c.Code) }

// The codes.
const (
	SelectsNothing    = "BW0101"
	NoProxy           = "BW0102"
	UnknownNamespace  = "BW0103"
	UnknownAccount    = "BW0104"
	CallerNoProxy     = "BW0105"
	NeverMatches      = "BW0106"
	ShadowedByDeny    = "BW0107"
	Redundant         = "BW0108"
	WiderThanSiblings = "BW0109"
	HTTPOnTCP         = "BW0110"
	ServicePort       = "BW0111"
	PlaintextIdentity = "BW0112"
	UnprovenHeader    = "BW0113"
	TokenNotDemanded  = "BW0114"
	PermissiveLeft    = "BW0115"
	StrictBreaks      = "BW0116"
	ModeConflict      = "BW0117"
	NotExported       = "BW0118"
	HiddenBySidecar   = "BW0119"
	NotEnforceable    = "BW0120"
	Advice            = "BW0121"
	UnknownCode       = "BW0122"
	NoAuthorizer      = "BW0123"
	UnnamedHost       = "BW0124"
	MeshAddress       = "BW0125"
	ClaimedName       = "BW0126"
	NobodyAnswers     = "BW0127"
)

// Codes are all of them, in their order.
var Codes = []Code{
	{SelectsNothing, Warning, "selects nothing"},
	{NoProxy, Warning, "selects only pods without a proxy"},
	{UnknownNamespace, Warning, "names a namespace that is not there"},
	{UnknownAccount, Warning, "names a service account that is not there"},
	{CallerNoProxy, Warning, "admits callers that have no proxy"},
	{NeverMatches, Error, "can never match"},
	{ShadowedByDeny, Warning, "is always denied before it is asked"},
	{Redundant, Info, "is contained in another rule"},
	{WiderThanSiblings, Warning, "opens what policies beside it restrict"},
	{HTTPOnTCP, Warning, "asks for HTTP where there is none"},
	{ServicePort, Warning, "names a Service's port, not the workload's"},
	{PlaintextIdentity, Warning, "relies on identities where plaintext comes in"},
	{UnprovenHeader, Warning, "relies on a header that anybody can send"},
	{TokenNotDemanded, Warning, "verifies tokens that nobody has to show"},
	{PermissiveLeft, Warning, "takes plaintext in a STRICT mesh"},
	{StrictBreaks, Error, "would refuse callers"},
	{ModeConflict, Warning, "has the same scope as an older one"},
	{NotExported, Warning, "hides a Service from whom policies admit"},
	{HiddenBySidecar, Warning, "hides a Service from a workload that policies admit"},
	{NotEnforceable, Error, "cannot be enforced"},
	{Advice, Info, "may not be what its author thinks"},
	{UnknownCode, Warning, "ignores a code that there is not"},
	{NoAuthorizer, Error, "asks an authorizer that cannot answer"},
	{UnnamedHost, Warning, "says how to speak with what nothing names"},
	{MeshAddress, Warning, "names an address of the mesh's own"},
	{ClaimedName, Warning, "lets the confined go wherever they say"},
	{NobodyAnswers, Error, "has calls refused"},
}

// Known reports whether there is a code.
func Known(code string) bool {
	return slices.ContainsFunc(Codes, func(c Code) bool { return c.Code == code })
}
