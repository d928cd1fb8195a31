// Pilot compiles the cluster's services and policies into Envoy configuration, serves it, and gives pods their proxies.
package main

import (
	"os"

	"github.com/bulwark-mesh/bulwark/pilot/internal/server"
	"github.com/bulwark-mesh/bulwark/pkg/config"
)

func main() {
	cmd := config.Command("pilot", "Pilot: configuration of the mesh's proxies", server.Defaults(), server.Run)
	if cmd.Execute() != nil {
		os.Exit(1)
	}
}
