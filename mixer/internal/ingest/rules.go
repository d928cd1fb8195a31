package ingest

import (
	"fmt"
	"regexp"

	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Bounds of what one message may hold. They are above what agents and Citadel send.
const (
	maxBatch     = 2000     // events
	maxEvent     = 48 << 10 // bytes
	maxWorkloads = 1000     // of a node; Kubernetes supports 110 pods there
	maxCounters  = 20000    // of a node
	maxLabels    = 64       // of a counter
	maxLabel     = 1024     // bytes of a label's name or value
)

// sender is who speaks, by its certificate.
type sender struct {
	id   spiffe.ID
	node string // that the certificate's pod is bound to; agents have one
}

// String is how records name the sender.
func (s sender) String() string {
	if s.node == "" {
		return s.id.String()
	}
	return s.id.String() + " on " + s.node
}

// spoolName is the form of the IDs that spools give themselves.
var spoolName = regexp.MustCompile(`^[0-9a-f]{32}$`)

// check returns why a batch is not the sender's to send. The reasons quote what the certificate says, and of the batch numbers
// alone.
func (p Peers) check(s sender, batch *telemetryv1.EventBatch) error {
	if !spoolName.MatchString(batch.GetSpool()) {
		return fmt.Errorf("the spool's name is not one that a spool gives itself")
	}
	if n := len(batch.GetEvents()); n > maxBatch {
		return fmt.Errorf("a batch of %d events, more than %d", n, maxBatch)
	}
	for _, e := range batch.GetEvents() {
		err := p.speaksFor(s, e)
		if err == nil && proto.Size(e) > maxEvent {
			err = fmt.Errorf("it has more than %d bytes", maxEvent)
		}
		if err != nil {
			return fmt.Errorf("event %d: %w", e.GetSequence(), err)
		}
	}
	return nil
}

// speaksFor returns why an event is not the sender's to tell. An agent tells what the proxies of its node decided, Citadel what
// it decided itself and what operators had it do. Each tells what is missing from its own spool.
func (p Peers) speaksFor(s sender, e *telemetryv1.Event) error {
	observer := e.GetObserver()
	switch s.id {
	case p.Agent:
		if observer.GetNode() != s.node {
			return fmt.Errorf("it was not observed on node %s", s.node)
		}
		switch e.GetKind() {
		case telemetryv1.Kind_KIND_REQUEST:
			return observed(e, p.Agent.TrustDomain)
		case telemetryv1.Kind_KIND_TRAIL:
			return missing(e)
		default:
			return fmt.Errorf("%s is not for an agent to tell", e.GetKind())
		}
	case p.Citadel:
		if observer.GetIdentity() != s.id.String() {
			return fmt.Errorf("it was not observed by %s", s.id)
		}
		switch e.GetKind() {
		case telemetryv1.Kind_KIND_ISSUANCE, telemetryv1.Kind_KIND_ADMIN:
			return named(e.GetSourceIdentity(), e.GetDestinationIdentity())
		case telemetryv1.Kind_KIND_TRAIL:
			return missing(e)
		default:
			if e.GetKind() == telemetryv1.Kind_KIND_REQUEST && e.GetLost() > 0 {
				return missing(e) // by a Citadel of before such events had a kind of their own
			}
			return fmt.Errorf("%s is not for Citadel to tell", e.GetKind())
		}
	default:
		return fmt.Errorf("%s has nothing to tell", s.id)
	}
}

// observed returns what is wrong with a proxy's decision: the side on which it was made is the observer's.
func observed(e *telemetryv1.Event, trustDomain string) error {
	o := e.GetObserver()
	if e.GetLost() > 0 {
		return missing(e) // of a spool that was written before such events had a kind of their own
	}
	id, err := spiffe.Parse(o.GetIdentity())
	if err != nil || id.TrustDomain != trustDomain || id.Namespace != o.GetNamespace() || id.ServiceAccount != o.GetServiceAccount() {
		return fmt.Errorf("the observer's identity is not that of its service account")
	}
	own := e.GetDestinationIdentity()
	if e.GetReporter() == telemetryv1.Reporter_REPORTER_SOURCE {
		own = e.GetSourceIdentity()
	}
	if own != o.GetIdentity() {
		return fmt.Errorf("the side on which it was observed is not the observer's")
	}
	return nil
}

// demote makes claims of those names that cannot have been proven, as they are no identities. Agents do so themselves; events
// that an agent of an earlier version has left in its spool are taken too, or nothing after them would be.
func demote(e *telemetryv1.Event) {
	if named(e.GetSourceIdentity()) != nil {
		e.ClaimedSource, e.SourceIdentity = e.GetSourceIdentity(), ""
	}
	if named(e.GetDestinationIdentity()) != nil {
		e.ClaimedDestination, e.DestinationIdentity = e.GetDestinationIdentity(), ""
	}
}

// missing returns what is wrong with an event about events that are not there: it says nothing else.
func missing(e *telemetryv1.Event) error {
	if e.GetLost() == 0 || e.GetVerdict() != telemetryv1.Verdict_VERDICT_UNSPECIFIED || e.GetSourceIdentity()+e.GetDestinationIdentity()+e.GetPolicy() != "" {
		return fmt.Errorf("an event about what is missing says how many, and nothing else")
	}
	return nil
}

// named returns an error unless each name that is shown as proven is a SPIFFE ID of the form that meshes have, or empty.
func named(identities ...string) error {
	for _, identity := range identities {
		if identity == "" {
			continue
		}
		if _, err := spiffe.Parse(identity); err != nil {
			return fmt.Errorf("a name that is no identity is shown as a proven one")
		}
	}
	return nil
}

// checkReport returns why a report of counters is not the sender's to send.
func checkReport(s sender, r *telemetryv1.NodeReport) error {
	if r.GetNode() != s.node {
		return fmt.Errorf("it is not of node %s", s.node)
	}
	if len(r.GetWorkloads()) > maxWorkloads {
		return fmt.Errorf("it has %d workloads, more than %d", len(r.GetWorkloads()), maxWorkloads)
	}
	counters := 0
	for _, w := range r.GetWorkloads() {
		o := w.GetWorkload()
		id, err := spiffe.Parse(o.GetIdentity())
		own := err == nil && id.TrustDomain == s.id.TrustDomain && id.Namespace == o.GetNamespace() && id.ServiceAccount == o.GetServiceAccount()
		if !own || o.GetNode() != s.node {
			return fmt.Errorf("a workload is not of node %s, or its identity is not that of its service account", s.node)
		}
		counters += len(w.GetCounters())
		for _, c := range w.GetCounters() {
			if len(c.GetLabels()) > maxLabels || len(c.GetName()) > maxLabel {
				return fmt.Errorf("a counter has a name of more than %d bytes or more than %d labels", maxLabel, maxLabels)
			}
			for name, value := range c.GetLabels() {
				if len(name) > maxLabel || len(value) > maxLabel {
					return fmt.Errorf("a label has more than %d bytes", maxLabel)
				}
			}
		}
	}
	if counters > maxCounters {
		return fmt.Errorf("it has %d counters, more than %d", counters, maxCounters)
	}
	return nil
}
