// A real Kubernetes cluster on one Linux machine, for development and tests.
module github.com/bulwark-mesh/bulwark/tools/cluster

go 1.26.0

require (
	github.com/bulwark-mesh/bulwark/tools v0.0.0
	github.com/spf13/cobra v1.10.1
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sync v0.18.0
	golang.org/x/sys v0.38.0
)

replace github.com/bulwark-mesh/bulwark/tools => ../
