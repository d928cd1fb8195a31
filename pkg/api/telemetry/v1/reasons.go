package telemetryv1

// Reasons of Events by which those who read the audit trail tell what decided. The node agent writes them, and records are kept: a text that changes here is
// no longer found in the records of before.
const (
	// ReasonPlaintext is of a connection without mutual TLS where it is required.
	ReasonPlaintext = "no mutual TLS where it is required"
	// ReasonTokenRefused begins the reason of a request whose token is not good; what is wrong with it follows.
	ReasonTokenRefused = "the request's token is refused: "
	// ReasonAuthorizer begins the reason of a request or connection that an external authorizer has denied, or has not answered about; its name follows.
	ReasonAuthorizer = "external authorizer "
	// ReasonNoAllow is of what is denied since there are ALLOW policies, and none matches.
	ReasonNoAllow = "no ALLOW policy matched"
)

// MaxPath bounds the path of a request in an Event, in bytes; longer ones are cut.
const MaxPath = 4096
