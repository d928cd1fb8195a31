package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
)

var components = []string{"pilot", "citadel", "mixer", "agent", "envoy"}

// footprint is one process of the mesh.
type footprint struct {
	Component string `json:"component"`
	PID       int    `json:"pid"`
	proc.Memory
}

type memoryResult struct {
	Processes []footprint `json:"processes"`
}

func memoryCommand(c *common) *cobra.Command {
	cluster := "bulwark"
	cmd := &cobra.Command{
		Use: "memory", Short: "Resident memory of every component's processes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := measureMemory(cluster)
			if err != nil {
				return err
			}
			return c.write(cmd, result)
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", cluster, "name of the dev cluster, as in bin/cluster --name")
	return cmd
}

// measureMemory reads the processes in the cluster's control groups: its containers are processes of this machine.
func measureMemory(cluster string) (*memoryResult, error) {
	processes, err := proc.All()
	if err != nil {
		return nil, err
	}
	r := &memoryResult{}
	for _, p := range processes {
		if !slices.Contains(components, p.Program) {
			continue
		}
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
		if err != nil || !strings.Contains(string(groups), "/bulwark-cluster-"+cluster+"/") {
			continue
		}
		m, err := proc.MemoryOf(p.PID)
		if err != nil {
			continue // it has ended
		}
		r.Processes = append(r.Processes, footprint{p.Program, p.PID, m})
	}
	if len(r.Processes) == 0 {
		return nil, errors.New("no process of the mesh runs in cluster " + cluster)
	}
	slices.SortFunc(r.Processes, func(a, b footprint) int {
		return slices.Index(components, a.Component) - slices.Index(components, b.Component)
	})
	return r, nil
}

func (r *memoryResult) Table() report.Table {
	t := report.Table{Columns: []string{"component", "resident", "without file pages", "peak"}}
	for _, p := range r.Processes {
		t.Row(p.Component, report.MB(float64(p.Resident)), report.MB(float64(p.Own)), report.MB(float64(p.Peak)))
	}
	return t
}
