// Command mixer takes audit events and counters from the node agents, keeps the audit trail and shows both.
package main

import (
	"context"
	"os"
	"time"

	"github.com/bulwark-mesh/bulwark/mixer/internal/server"
	"github.com/bulwark-mesh/bulwark/pkg/config"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

func main() {
	defaults := server.Settings{
		LogLevel: "info", TrustDomain: mesh.DefaultTrustDomain, AuditDir: "/var/lib/bulwark/audit",
		TelemetryAddress: ":15011", MonitoringAddress: ":15014", OperatorAddress: ":15016", ShutdownTimeout: 10 * time.Second,
	}
	cmd := config.Command("mixer", "Bulwark's audit trail, metrics and dashboard", defaults, server.Run)
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		os.Exit(1)
	}
}
