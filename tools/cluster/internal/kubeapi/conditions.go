package kubeapi

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Node is what a cluster's status says of one.
type Node struct {
	Name    string
	Ready   bool
	Version string
}

type condition struct {
	Type   string `json:"type"`
	Status string `json:"status"`
}

// Nodes lists the registered nodes.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Status struct {
				Conditions []condition `json:"conditions"`
				NodeInfo   struct {
					KubeletVersion string `json:"kubeletVersion"`
				} `json:"nodeInfo"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := c.Get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	var nodes []Node
	for _, item := range list.Items {
		nodes = append(nodes, Node{
			Name:    item.Metadata.Name,
			Ready:   slices.Contains(item.Status.Conditions, condition{Type: "Ready", Status: "True"}),
			Version: item.Status.NodeInfo.KubeletVersion,
		})
	}
	return nodes, nil
}

// NodesReady fails, saying why, unless exactly the named nodes are there and ready.
func (c *Client) NodesReady(ctx context.Context, names []string) error {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	var ready []string
	for _, node := range nodes {
		if node.Ready {
			ready = append(ready, node.Name)
		}
	}
	slices.Sort(ready)
	if want := slices.Sorted(slices.Values(names)); !slices.Equal(ready, want) {
		return fmt.Errorf("nodes ready: [%s], of [%s]", strings.Join(ready, " "), strings.Join(want, " "))
	}
	return nil
}

// DeploymentReady fails unless a deployment has a ready replica.
func (c *Client) DeploymentReady(ctx context.Context, namespace, name string) error {
	var deployment struct {
		Status struct {
			ReadyReplicas int `json:"readyReplicas"`
		} `json:"status"`
	}
	if err := c.Get(ctx, "/apis/apps/v1/namespaces/"+namespace+"/deployments/"+name, &deployment); err != nil {
		return err
	}
	if deployment.Status.ReadyReplicas == 0 {
		return fmt.Errorf("deployment %s/%s has no ready replica", namespace, name)
	}
	return nil
}

// Exists fails unless there is an object at path.
func (c *Client) Exists(ctx context.Context, path string) error {
	var any struct{}
	return c.Get(ctx, path, &any)
}
