// Command citadel is the certificate authority of the mesh.
package main

import (
	"context"
	"os"

	"github.com/bulwark-mesh/bulwark/citadel/internal/run"
	"github.com/bulwark-mesh/bulwark/pkg/config"
)

func main() {
	cmd := config.Command("citadel", "Certificate authority of the mesh", run.Defaults(), run.Run)
	if cmd.ExecuteContext(context.Background()) != nil {
		os.Exit(1)
	}
}
