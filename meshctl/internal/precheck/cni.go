package precheck

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// elsewhere are platforms whose nodes have their CNI files in other directories, by what their kubelet says of itself.
var elsewhere = []struct{ name, kubelet, conf, bin string }{
	{"k3s", "+k3s", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"},
	{"GKE", "-gke.", "/etc/cni/net.d", "/home/kubernetes/bin"},
}

// untried is how the image of OpenShift's nodes begins: Multus hands no annotations on, and SELinux guards the directories.
const untried = "Red Hat Enterprise Linux CoreOS"

// CNI returns why the nodes cannot have the CNI plugin, empty if they can. Whoever has chosen the directories knows them.
func CNI(ctx context.Context, c kubernetes.Interface, chosenDirs bool) (obstacle string, err error) {
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("looking at the nodes: %w", err)
	}
	for _, node := range nodes.Items {
		if obstacle := obstacleOn(node.Status.NodeInfo, chosenDirs); obstacle != "" {
			return "node " + node.Name + " " + obstacle, nil
		}
	}
	return "", nil
}

func obstacleOn(node corev1.NodeSystemInfo, chosenDirs bool) string {
	if node.OperatingSystem == "windows" {
		return "" // no pod with a proxy runs there
	}
	runtime, _, _ := strings.Cut(node.ContainerRuntimeVersion, "://")
	if runtime != "containerd" && runtime != "cri-o" { // of old, as old as what Kubernetes 1.33 runs with
		return fmt.Sprintf("runs %s; containerd and cri-o are known to hand pods' annotations over to CNI plugins", node.ContainerRuntimeVersion)
	}
	if strings.HasPrefix(node.OSImage, untried) && !chosenDirs {
		return "is of OpenShift, where the plugin has not been tried"
	}
	for _, p := range elsewhere {
		if strings.Contains(node.KubeletVersion, p.kubelet) && !chosenDirs {
			return fmt.Sprintf("is of %s, which has its CNI files elsewhere; to have it there: --set cni=on,cniDirs.conf=%s,cniDirs.bin=%s", p.name, p.conf, p.bin)
		}
	}
	return ""
}
