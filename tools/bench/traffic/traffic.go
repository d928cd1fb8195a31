// Package traffic is the application at both ends of a benchmark: a server, a client that loads, and a client that
// watches for a change of verdict. They are hidden commands, so that they can be run in other network namespaces.
package traffic

import (
	"github.com/spf13/cobra"
)

// Command holds the commands.
func Command() *cobra.Command {
	cmd := &cobra.Command{Use: "traffic", Hidden: true}
	cmd.AddCommand(serveCommand(), loadCommand(), watchCommand())
	return cmd
}
