package mesh

// A proxy counts under few and short labels, as every request has to be looked up by them and every listener has to name them: by what
// varies, and by a word that says where it was counted. The agent makes of that the labels of Istio's standard metrics.
const (
	// FoldedMetrics is before the names of such metrics. Agents that know nothing of them leave them alone, and the statistics that
	// a proxy keeps are those that begin with "istio".
	FoldedMetrics = "istio_folded"

	// FoldedWhere says who counts, and what service was called: "c/<the service's host>" at the client's side, "m/<service's name>" at the
	// server's side by mutual TLS, "p/<service's name>" there in plaintext. What is not known is empty.
	FoldedWhere = "at"
	// FoldedServer is the server's workload, at the client's side: "<namespace>/<canonical name>/<revision>".
	FoldedServer = "to"
	// FoldedPeer is the identity that the other side has proven.
	FoldedPeer = "peer"
	// FoldedOutcome is what became of it: of a request "<response code> <response flags> <protocol> <gRPC status>", of a connection its flags.
	FoldedOutcome = "as"

	// FoldedProxy is the metric by which a proxy says whose it is: its labels are canonical name, revision and cluster.
	FoldedProxy         = "proxy"
	FoldedProxyName     = "name"
	FoldedProxyRevision = "revision"
	FoldedProxyCluster  = "cluster"
)

// Where a proxy counts: the first part of FoldedWhere.
const (
	CountedByClient          = "c"
	CountedByServer          = "m"
	CountedByServerPlaintext = "p"
)
