package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/cluster"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/namespace"
)

func exec(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "exec <node> -- <command>...",
		Short: "Run a command in a node's network, mount and UTS namespaces",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := opts.open(cmd)
			if err != nil {
				return err
			}
			node, err := c.Node(args[0])
			if err != nil {
				return err
			}
			return become(opts.name, node.Holder.PID, args[1:])
		},
	}
}

// internal commands are the first step of the processes that `up` starts.
func internal() *cobra.Command {
	cmd := &cobra.Command{Use: "internal", Hidden: true}
	cmd.AddCommand(spawn(), hold(), forward())
	return cmd
}

func spawn() *cobra.Command {
	var pid int
	cmd := &cobra.Command{
		Use:  "spawn -- <command>...",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return become(cmd.Flag("name").Value.String(), pid, args)
		},
	}
	cmd.Flags().IntVar(&pid, "enter", 0, "process whose namespaces to enter")
	return cmd
}

func hold() *cobra.Command {
	return &cobra.Command{
		Use:  "hold <spec>",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ready := os.NewFile(3, "ready")
			var spec namespace.Spec
			if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
				return fmt.Errorf("decode the namespaces: %w", err)
			}
			if err := join(cmd.Flag("name").Value.String()); err != nil {
				return err
			}
			return namespace.Hold(spec, ready)
		},
	}
}

func forward() *cobra.Command {
	var pid int
	cmd := &cobra.Command{
		Use:  "forward <address>",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			listener, err := net.FileListener(os.NewFile(3, "listener"))
			if err != nil {
				return fmt.Errorf("take over the listener: %w", err)
			}
			if err := join(cmd.Flag("name").Value.String()); err != nil {
				return err
			}
			dialer, err := namespace.NewDialer(pid)
			if err != nil {
				return err
			}
			return namespace.Forward(listener, dialer, args[0])
		},
	}
	cmd.Flags().IntVar(&pid, "enter", 0, "process in whose network to connect")
	return cmd
}

// become turns this process into a command on a node. It keeps its pid, by which it is on record.
func become(name string, pid int, argv []string) error {
	if err := join(name); err != nil {
		return err
	}
	if err := namespace.Enter(pid); err != nil {
		return err
	}
	path, err := osexec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("find %s: %w", argv[0], err)
	}
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// join makes sure that `down` finds this process, and all that it starts.
func join(name string) error {
	tree, err := cluster.SystemCgroup(name)
	if err != nil {
		return err
	}
	return tree.Join()
}
