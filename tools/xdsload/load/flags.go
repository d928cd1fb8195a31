package load

import "github.com/spf13/pflag"

// AddFlags lets the options be given on a command line.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig, "kubeconfig of a cluster with Bulwark installed")
	f.StringVar(&o.Binary, "pilot", o.Binary, "Pilot's binary")
	f.StringSliceVar(&o.PilotArgs, "pilot-arg", nil, "more arguments for Pilot")
	f.IntVar(&o.Proxies, "proxies", o.Proxies, "proxies to simulate")
	f.IntVar(&o.Services, "services", o.Services, "services")
	f.IntVar(&o.Endpoints, "endpoints", o.Endpoints, "endpoints of a service")
	f.IntVar(&o.Namespaces, "namespaces", o.Namespaces, "namespaces")
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "nodes to simulate")
	f.IntVar(&o.Changes, "changes", o.Changes, "changes of each kind")
	f.DurationVar(&o.Interval, "interval", o.Interval, "from one change to the next, at least")
	f.StringVar(&o.LogDir, "log-dir", "", "directory to keep Pilot's log in")
}
