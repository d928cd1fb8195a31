package cli

import (
	"context"
	"fmt"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/precheck"
)

// redirection is who redirects the traffic of pods.
type redirection struct{ cni, why string }

func (r redirection) String() string {
	who := "an init container of each pod, which needs NET_ADMIN"
	if r.cni == "on" {
		who = "the nodes' CNI plugin; pods need no privilege"
	}
	return fmt.Sprintf("redirection by %s (cni=%s: %s)", who, r.cni, r.why)
}

// redirectionBy decides what the values leave open. Without a cluster the choice is the chart's.
func redirectionBy(ctx context.Context, client *kube.Client, values map[string]any) (redirection, error) {
	flat, err := settled(values)
	if err != nil {
		return redirection{}, err
	}
	switch flat["cni"] { // a file may have YAML's words for true and false
	case "on", "true":
		return redirection{"on", "as set"}, nil
	case "off", "false":
		return redirection{"off", "as set"}, nil
	}
	if client == nil {
		return redirection{"on", "no node was looked at"}, nil
	}
	defaults, err := settled(nil)
	if err != nil {
		return redirection{}, err
	}
	chosen := flat["cniDirs.conf"] != defaults["cniDirs.conf"] || flat["cniDirs.bin"] != defaults["cniDirs.bin"]
	obstacle, err := precheck.CNI(ctx, client, chosen)
	if err != nil {
		return redirection{}, err
	}
	if obstacle != "" {
		return redirection{"off", obstacle}, nil
	}
	return redirection{"on", "every node can have it"}, nil
}
