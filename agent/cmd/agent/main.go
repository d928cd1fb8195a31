// Command agent runs on each node and holds the identities of its pods. `agent redirect` sends a pod's traffic through
// its proxy; `agent prove` finds out that somebody else has; `agent cleanup` removes what the agent keeps on a node.
package main

import (
	"context"
	"os"

	"github.com/bulwark-mesh/bulwark/agent/internal/cleanup"
	"github.com/bulwark-mesh/bulwark/agent/internal/redirect"
	"github.com/bulwark-mesh/bulwark/agent/internal/run"
	"github.com/bulwark-mesh/bulwark/pkg/config"
)

func main() {
	cmd := config.Command("agent", "Node agent of the mesh", run.Defaults(), run.Run)
	cmd.AddCommand(config.Command("redirect", "Send the traffic of this network namespace through the proxy", redirect.Defaults(), redirect.Run))
	cmd.AddCommand(config.Command("prove", "Prove that the traffic of this network namespace is redirected", redirect.ProveSettings{}, redirect.Prove))
	cmd.AddCommand(config.Command("cleanup", "Remove what the agent keeps on this node", cleanup.Defaults(), cleanup.Run))
	if cmd.ExecuteContext(context.Background()) != nil {
		os.Exit(1)
	}
}
