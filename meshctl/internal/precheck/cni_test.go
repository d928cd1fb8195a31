package precheck

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestWhereTheCNIPluginCannotBe(t *testing.T) {
	node := func(runtime, kubelet, image, system string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{
			ContainerRuntimeVersion: runtime, KubeletVersion: kubelet, OSImage: image, OperatingSystem: system}}}
	}
	for name, c := range map[string]struct {
		node   *corev1.Node
		chosen bool
		want   string
	}{
		"plain":                  {node("containerd://2.1.4", "v1.36.0", "Debian", "linux"), false, ""},
		"CRI-O":                  {node("cri-o://1.34.1", "v1.34.1", "Fedora", "linux"), false, ""},
		"Docker":                 {node("docker://28.0.1", "v1.33.0", "Ubuntu", "linux"), true, "node one runs docker"},
		"k3s":                    {node("containerd://2.1.4-k3s1", "v1.34.1+k3s1", "Alpine", "linux"), false, "cniDirs.conf=/var/lib/rancher/k3s"},
		"k3s, directories given": {node("containerd://2.1.4-k3s1", "v1.34.1+k3s1", "Alpine", "linux"), true, ""},
		"GKE":                    {node("containerd://2.0.6", "v1.34.1-gke.1829001", "Container-Optimized OS", "linux"), false, "/home/kubernetes/bin"},
		"OpenShift":              {node("cri-o://1.34.1", "v1.34.1", "Red Hat Enterprise Linux CoreOS 9.6", "linux"), false, "OpenShift"},
		"Windows":                {node("docker://28.0.1", "v1.33.0", "Windows Server", "windows"), false, ""},
	} {
		got, err := CNI(t.Context(), fake.NewClientset(c.node), c.chosen)
		if err != nil || (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}
