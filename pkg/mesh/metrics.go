package mesh

// A proxy counts under one short label, as it has to make the label, twice, for every request: of what varies, and of a word that says where
// it was counted. The agent makes of that the labels of Istio's standard metrics.
const (
	// FoldedMetrics is before the names of such metrics. Agents that know nothing of them leave them alone, and the statistics that
	// a proxy keeps are those that begin with "istio".
	FoldedMetrics = "istio_series"

	// FoldedLabel is the one label. Its value has FoldedFields fields, with FoldedSeparator between, which is in no name and in no identity;
	// what is not known, or does not apply, is empty:
	//   - who counts: one of the words CountedBy…;
	//   - what service was called: its host at the client's side, its name at the server's;
	//   - the server's workload, at the client's side: "<namespace>/<canonical name>/<revision>";
	//   - the identity that the other side has proven;
	//   - what became of it: of a request "<response code> <response flags> <protocol> <gRPC status>", of a connection its flags.
	FoldedLabel     = "s"
	FoldedSeparator = "|"
	FoldedFields    = 5

	// FoldedProxy is the metric by which a proxy says whose it is: its labels are canonical name, revision and cluster.
	FoldedProxy         = "proxy"
	FoldedProxyName     = "name"
	FoldedProxyRevision = "revision"
	FoldedProxyCluster  = "cluster"
)

// Where a proxy counts: at the client's side, or at the server's by mutual TLS or in plaintext.
const (
	CountedByClient          = "c"
	CountedByServer          = "m"
	CountedByServerPlaintext = "p"
)
