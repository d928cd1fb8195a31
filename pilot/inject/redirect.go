package inject

import (
	"cmp"
	"fmt"
	"slices"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	redirection "github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// redirectContainer is the first container of the pod. Where the node's CNI plugin redirects the pod, it has no privilege and
// proves that this was done; pod and volume, of the agent's, then say so to the plugin and to the agent. Otherwise it redirects
// the pod itself.
func redirectContainer(pod *core.Pod, volume *core.CSIVolumeSource, o redirection.Options, resources core.ResourceRequirements, c Config) core.Container {
	delete(pod.Annotations, mesh.RedirectAnnotation) // only what injection writes is believed
	delete(pod.Annotations, mesh.RedirectedAnnotation)
	container := core.Container{
		Name: mesh.RedirectContainer, Image: c.AgentImage, ImagePullPolicy: core.PullPolicy(c.PullPolicy), Resources: resources,
		// The reason of a failure is in the pod's status, for `kubectl describe`.
		TerminationMessagePolicy: core.TerminationMessageFallbackToLogsOnError,
	}
	if c.CNI {
		container.Args, container.SecurityContext = []string{"prove"}, unprivileged(mesh.ProverUID)
		pod.Annotations[mesh.RedirectAnnotation] = o.String()
		volume.VolumeAttributes = map[string]string{mesh.RedirectAttribute: mesh.RedirectByCNI}
		return container
	}
	container.Args = []string{"redirect", "--options=" + o.String()}
	if o.String() != "{}" {
		pod.Annotations[mesh.RedirectedAnnotation] = o.String()
	}
	container.SecurityContext = unprivileged(0)
	container.SecurityContext.RunAsNonRoot = ptr(false)
	container.SecurityContext.Capabilities.Add = []core.Capability{"NET_ADMIN"}
	return container
}

// unprivileged is what a container of the Pod Security Standards' profile "restricted" has.
func unprivileged(uid int64) *core.SecurityContext {
	return &core.SecurityContext{
		RunAsUser: ptr(uid), RunAsGroup: ptr(uid), RunAsNonRoot: ptr(true), Privileged: ptr(false),
		AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
		Capabilities:   &core.Capabilities{Drop: []core.Capability{"ALL"}},
		SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault},
	}
}

// runsAsProxy names a container of the pod's own whose traffic would not be redirected, as it is to run as the proxy's user or
// group; empty if there is none. Who runs so would be taken for the proxy by the agent, too.
func runsAsProxy(pod *core.Pod) string {
	ofPod := cmp.Or(pod.Spec.SecurityContext, &core.PodSecurityContext{})
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		own := cmp.Or(c.SecurityContext, &core.SecurityContext{})
		user, group := cmp.Or(own.RunAsUser, ofPod.RunAsUser), cmp.Or(own.RunAsGroup, ofPod.RunAsGroup)
		if user != nil && *user == mesh.ProxyUID || group != nil && *group == mesh.ProxyGID {
			return fmt.Sprintf("container %s is to run as user or group %d, which is the proxy's: its traffic would go around the proxy; "+
				"give it another runAsUser and runAsGroup", c.Name, mesh.ProxyUID)
		}
	}
	return ""
}
