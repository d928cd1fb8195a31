// Package manifests holds what is applied to a cluster: the Helm chart and the samples.
package manifests

import "embed"

// Chart is the Helm chart, below charts/bulwark. Its crds/ is taken from the module of the Istio API when Bulwark is built (make
// generate), and is not there in a build that left this out.
//
//go:embed all:charts/bulwark
var Chart embed.FS

// Samples is below samples/.
//
//go:embed samples
var Samples embed.FS
