// Command cni is two things. Run by a container runtime, as bulwark-cni, it is the CNI plugin that redirects the traffic of
// pods with a proxy. Otherwise it is the program of the DaemonSet that keeps this plugin in its node's CNI configuration:
// `cni ready` asks it whether it is there, `cni remove` takes it out.
package main

import (
	"context"
	"os"

	"github.com/bulwark-mesh/bulwark/cni/internal/plugin"
	"github.com/bulwark-mesh/bulwark/cni/internal/run"
	"github.com/bulwark-mesh/bulwark/pkg/config"
)

func main() {
	if os.Getenv("CNI_COMMAND") != "" {
		plugin.Main()
		return
	}
	cmd := config.Command("cni", "Keeper of the node's CNI plugin", run.Defaults(), run.Run)
	cmd.AddCommand(config.Command("ready", "Say whether the plugin is in the node's CNI configuration", run.ReadyDefaults(), run.Ready))
	cmd.AddCommand(config.Command("remove", "Take the plugin off this node", run.Defaults(), run.Remove))
	if cmd.ExecuteContext(context.Background()) != nil {
		os.Exit(1)
	}
}
