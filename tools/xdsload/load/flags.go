package load

import "github.com/spf13/pflag"

// AddFlags lets the options be given on a command line.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig, "kubeconfig of a cluster with Bulwark installed")
	f.StringVar(&o.Binary, "pilot", o.Binary, "Pilot's binary")
	f.StringSliceVar(&o.PilotArgs, "pilot-arg", nil, "more arguments for Pilot")
	f.StringSliceVar(&o.Worlds, "world", o.Worlds, "open: policies select a twentieth of the services; closed: each names who may call it; or both")
	f.IntVar(&o.Services, "services", o.Services, "services")
	f.IntVar(&o.Endpoints, "endpoints", o.Endpoints, "endpoints of a service")
	f.IntVar(&o.Namespaces, "namespaces", o.Namespaces, "namespaces")
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "nodes, with an agent each")
	f.IntVar(&o.PodsPerNode, "pods-per-node", o.PodsPerNode, "pods of a node that have a simulated proxy")
	f.IntSliceVar(&o.Growth, "growth", nil, "run with each of these numbers of services, and say how the cost of a change grows")
	f.IntVar(&o.Dense, "dense", 0, "run once more in each world, with so many pods on a node")
	f.BoolVar(&o.Requests, "requests", false, "the workloads with proxies and policies take tokens, too, and ask an external authorizer, and that changes")
	f.BoolVar(&o.Envoy, "envoy", o.Envoy, "measure a real Envoy's memory, too, in network namespaces of its own (needs root)")
	f.IntVar(&o.Changes, "changes", o.Changes, "changes of each kind")
	f.DurationVar(&o.Interval, "interval", o.Interval, "from one change to the next, at least")
	f.StringVar(&o.LogDir, "log-dir", "", "directory to keep logs in")
}
