package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

func (s *Stage) pilot(ctx context.Context) (core.Container, error) {
	pilot, err := s.Kube.AppsV1().Deployments(mesh.Namespace).Get(ctx, mesh.PilotAccount, meta.GetOptions{})
	if err != nil {
		return core.Container{}, fmt.Errorf("finding the installed Pilot: %w", err)
	}
	return pilot.Spec.Template.Spec.Containers[0], nil
}

// sampleImage is the sample workload's, beside that of the installed Pilot.
func (s *Stage) sampleImage(ctx context.Context) (string, error) {
	c, err := s.pilot(ctx)
	return strings.Replace(c.Image, "/pilot:", "/sample:", 1), err
}

// Provider is the name by which installations know the authorizer, if they do.
const Provider = "bench"

// KnowsAuthorizer says whether the installation has the authorizer among its extensionProviders.
func (s *Stage) KnowsAuthorizer(ctx context.Context) (bool, error) {
	c, err := s.pilot(ctx)
	return slices.ContainsFunc(c.Args, func(arg string) bool {
		return strings.HasPrefix(arg, "--extension-providers=") && strings.Contains(arg, fmt.Sprintf(`"name":%q`, Provider))
	}), err
}

// RealPods runs the server and the client from the sample image, and returns when both are ready.
func (s *Stage) RealPods(ctx context.Context) error {
	image, err := s.sampleImage(ctx)
	if err != nil {
		return err
	}
	for name, args := range map[string][]string{Server: {"server", "--name=" + Server}, Client: {"wait"}} {
		if _, err := s.Kube.CoreV1().Pods(Namespace).Create(ctx, pod(name, image, args...), meta.CreateOptions{}); err != nil {
			return fmt.Errorf("making pod %s: %w", name, err)
		}
	}
	err = wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		list, err := s.Kube.CoreV1().Pods(Namespace).List(ctx, meta.ListOptions{})
		if err != nil {
			return false, err
		}
		ready := 0
		for _, p := range list.Items {
			for _, c := range p.Status.Conditions {
				if c.Type == core.PodReady && c.Status == core.ConditionTrue {
					ready++
				}
			}
		}
		return ready == 2, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the pods (is image %s loaded?): %w", image, err)
	}
	return nil
}

func pod(name, image string, args ...string) *core.Pod {
	no, yes, user, grace := false, true, int64(65532), int64(1)
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: core.PodSpec{
			ServiceAccountName: name, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no,
			SecurityContext: &core.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user},
			Containers: []core.Container{{Name: "app", Image: image, ImagePullPolicy: core.PullIfNotPresent, Args: args,
				Ports: []core.ContainerPort{{Name: "http", ContainerPort: 8080}}}},
		},
	}
}

// Node is where pretended pods are. There is no such node, which has the garbage collector remove them after a minute; they are needed until their
// configuration has been captured.
const Node = "bench-pretended"

// PretendPod makes a pod that no scheduler looks at, with a status as if it ran at the address, and returns it as
// injection made it.
func (s *Stage) PretendPod(ctx context.Context, name, ip string) (*core.Pod, error) {
	return s.pretend(ctx, pod(name, "none.invalid/app"), ip)
}

func (s *Stage) pretend(ctx context.Context, p *core.Pod, ip string) (*core.Pod, error) {
	name := p.Name
	p.Spec.SchedulerName, p.Spec.NodeName = "none.invalid", Node
	made, err := s.Kube.CoreV1().Pods(Namespace).Create(ctx, p, meta.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("making pod %s: %w", name, err)
	}
	patch, err := json.Marshal(map[string]any{"status": core.PodStatus{
		Phase: core.PodRunning, PodIP: ip, PodIPs: []core.PodIP{{IP: ip}},
		Conditions: []core.PodCondition{{Type: core.PodReady, Status: core.ConditionTrue}}}})
	if err != nil {
		return nil, err
	}
	if _, err := s.Kube.CoreV1().Pods(Namespace).Patch(ctx, name, types.StrategicMergePatchType, patch, meta.PatchOptions{}, "status"); err != nil {
		return nil, fmt.Errorf("status of pod %s: %w", name, err)
	}
	return made, nil
}

// PretendEndpoint puts an address behind the service: controllers leave out pods that are on no node.
func (s *Stage) PretendEndpoint(ctx context.Context, ip string) error {
	var ports []discovery.EndpointPort
	for _, p := range traffic.Ports {
		ports = append(ports, discovery.EndpointPort{Name: &p.Name, Port: new(int32(p.Number))})
	}
	return s.endpoint(ctx, Server, ip, ports)
}

// Authorizer is the Service of an external authorizer that pretends to be there, a pod without a proxy: a server that traffic.AuthorizerPort has.
const Authorizer = "authorizer"

// PretendAuthorizer puts the authorizer at an address.
func (s *Stage) PretendAuthorizer(ctx context.Context, ip string) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	p := pod(Authorizer, "none.invalid/app")
	p.Spec.ServiceAccountName = Client // which is there
	p.Labels[istiocompat.PodInjectionLabel] = "false"
	if _, err := s.pretend(ctx, p, ip); err != nil {
		return err
	}
	if err := s.AuthorizerService(ctx); err != nil {
		return err
	}
	return s.endpoint(ctx, Authorizer, ip, []discovery.EndpointPort{{Name: new(authorizerPort), Port: new(int32(traffic.AuthorizerPort))}})
}

const authorizerPort = "grpc"

// AuthorizerService makes the authorizer's Service. As long as nobody is behind it, what it is asked about is denied.
func (s *Stage) AuthorizerService(ctx context.Context) error {
	_, err := s.Kube.CoreV1().Services(Namespace).Create(ctx, &core.Service{ObjectMeta: meta.ObjectMeta{Name: Authorizer},
		Spec: core.ServiceSpec{Selector: map[string]string{"app": Authorizer}, Ports: []core.ServicePort{{Name: authorizerPort, Port: traffic.AuthorizerPort}}}}, meta.CreateOptions{})
	if err != nil {
		return fmt.Errorf("making Service %s: %w", Authorizer, err)
	}
	return nil
}

func (s *Stage) endpoint(ctx context.Context, service, ip string, ports []discovery.EndpointPort) error {
	_, err := s.Kube.DiscoveryV1().EndpointSlices(Namespace).Create(ctx, &discovery.EndpointSlice{
		ObjectMeta: meta.ObjectMeta{Name: service + "-pretended", Labels: map[string]string{
			discovery.LabelServiceName: service, discovery.LabelManagedBy: Namespace}},
		AddressType: discovery.AddressTypeIPv4, Ports: ports,
		Endpoints: []discovery.Endpoint{{Addresses: []string{ip}}},
	}, meta.CreateOptions{})
	if err != nil {
		return fmt.Errorf("making the endpoint: %w", err)
	}
	return nil
}
