package inject

import (
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// The proxy, and no other container, has the files that annotations choose for it, and cannot write them.
func TestProxiesHaveTheFilesOfTheirPodsAuthor(t *testing.T) {
	for _, as := range []map[string]string{
		{userVolume: `{"certs": {"secret": {"secretName": "x"}}, "ca": {"configMap": {"name": "y"}}}`, userVolumeMount: `{"ca": {"mountPath": "/etc/ca"}, "certs": {"mountPath": "/etc/certs/x", "readOnly": false}}`},
		{userVolume: `[{"name": "ca", "configMap": {"name": "y"}}, {"name": "certs", "secret": {"secretName": "x"}}]`, userVolumeMount: ` [{"name": "ca", "mountPath": "/etc/ca"}, {"name": "certs", "mountPath": "/etc/certs/x"}]`},
	} {
		pod, _ := annotated(t, config, as)
		i := slices.IndexFunc(pod.Spec.InitContainers, func(c core.Container) bool { return c.Name == mesh.ProxyContainer })
		got := pod.Spec.InitContainers[i].VolumeMounts[1:]
		if want := []core.VolumeMount{{Name: "ca", MountPath: "/etc/ca", ReadOnly: true}, {Name: "certs", MountPath: "/etc/certs/x", ReadOnly: true}}; !slices.EqualFunc(got, want, func(a, b core.VolumeMount) bool { return a == b }) {
			t.Errorf("%v: %+v", as, got)
		}
		volumes := pod.Spec.Volumes[len(pod.Spec.Volumes)-2:]
		if volumes[0].ConfigMap == nil || volumes[0].ConfigMap.Name != "y" || volumes[1].Secret == nil || volumes[1].Secret.SecretName != "x" {
			t.Errorf("%v: %+v", as, volumes)
		}
		if n := len(pod.Spec.Containers[0].VolumeMounts); n != 0 {
			t.Errorf("%v: the application has %d mounts", as, n)
		}
	}
}

func TestFilesThatAProxyMayNotHave(t *testing.T) {
	const certs = `{"certs": {"secret": {"secretName": "x"}}}`
	for _, c := range []struct{ volumes, mounts, want string }{
		{`{"certs": {"hostPath": {"path": "/"}}}`, "", `volume "certs": only a secret, a configMap`},
		{`{"certs": {"emptyDir": {}}}`, "", "only a secret, a configMap"},
		{`{"certs": {"csi": {"driver": "x"}}}`, "", "only a secret, a configMap"},
		{`{"certs": {"secret": {"secretName": "x"}, "hostPath": {"path": "/"}}}`, "", "only a secret, a configMap"},
		{`{"certs": {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}}`, "", "only a secret, a configMap"},
		{`{"certs": {"projected": {"sources": [{"secret": {"name": "x"}}, {"downwardAPI": {}}]}}}`, "", "only a secret, a configMap"},
		{`{"` + mesh.IdentityVolume + `": {"secret": {"secretName": "x"}}}`, "", "is no name for a volume, or another one has it"},
		{`{"A": {"secret": {"secretName": "x"}}}`, "", "is no name for a volume"},
		{`{"own": {"secret": {"secretName": "x"}}}`, "", `the pod has a volume "own" itself`},
		{`{"certs": {"secret": {"secretNaem": "x"}}}`, "", `unknown field "secretNaem"`},
		{certs + certs, "", "more than one JSON value"},
		{`nonsense`, "", "cannot be read as JSON"},
		{certs, `{"other": {"mountPath": "/etc/certs"}}`, `no volume "other"`},
		{certs, `{"own": {"mountPath": "/etc/certs"}}`, `no volume "own"`},
		{certs, `{"certs": {"mountPath": "/run/bulwark"}}`, "that is not the proxy's own"},
		{certs, `{"certs": {"mountPath": "/etc/bulwark/identity"}}`, "that is not the proxy's own"},
		{certs, `{"certs": {"mountPath": "/etc/ssl/certs"}}`, "that is not the proxy's own"},
		{certs, `{"certs": {"mountPath": "/etc"}}`, "that is not the proxy's own"},
		{certs, `{"certs": {"mountPath": "/etc/x/../bulwark"}}`, "that is not the proxy's own"},
		{certs, `{"certs": {"mountPath": "/usr/bin"}}`, "that is not the proxy's own"},
		{certs, `[{"name": "certs", "mountPath": "/etc/a"}, {"name": "certs", "mountPath": "/etc/a"}]`, "a directory of its own"},
		{certs, `{"certs": {"mountPath": "/etc/certs", "subPath": "x"}}`, "has more than name"},
	} {
		pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Annotations: map[string]string{userVolume: c.volumes}}, Spec: core.PodSpec{Volumes: []core.Volume{{Name: "own"}}}}
		if c.mounts != "" {
			pod.Annotations[userVolumeMount] = c.mounts
		}
		if _, err := choose(pod); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v, want %q", c.volumes, c.mounts, err, c.want)
		}
	}
}
