// Package manifests holds what is applied to a cluster: the Helm chart, the CRDs of the Istio API and the samples.
package manifests

import "embed"

// Chart is the Helm chart, below charts/bulwark.
//
//go:embed all:charts/bulwark
var Chart embed.FS

// CRDs is below generated/: taken from the modules of the Istio API and the Gateway API when Bulwark is built (make
// generate), and empty in a build that left this out.
//
//go:embed all:generated
var CRDs embed.FS

// Samples is below samples/.
//
//go:embed samples
var Samples embed.FS
