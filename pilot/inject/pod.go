package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	xdscore "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Config is what an installation chooses.
type Config struct {
	TrustDomain    string
	ProxyImage     string // Envoy
	AgentImage     string // for the init container of redirection
	PullPolicy     string
	ProxyCPU       string // request
	ProxyCPUMax    string // limit
	ProxyMemory    string // request
	ProxyMemoryMax string // limit
	ProxyLogLevel  string
	ClusterName    string // label of metrics
	ProxyWorkers   int
	CNI            bool // the nodes' CNI plugin redirects, and the init container proves it; else the init container does it, with a privilege
	LoadBalancers  bool // the installation names some whose word by the PROXY protocol counts
	IPv6           bool // the cluster's Services have addresses of IPv6, and so have pods
}

// Defaults are what an installation has that chooses nothing, but for the images.
var Defaults = Config{
	TrustDomain: mesh.DefaultTrustDomain, PullPolicy: "IfNotPresent", ProxyCPU: "50m", ProxyCPUMax: "2", ProxyMemory: "64Mi", ProxyMemoryMax: "512Mi",
	ProxyLogLevel: "warning", ClusterName: "Kubernetes", ProxyWorkers: 2,
}

// apply returns a copy of the pod as it is in the mesh, and the init containers that go before its own: redirection, and
// the proxy. They are first so that the application's own init containers are in the mesh, too.
func apply(in *core.Pod, namespace string, way delivery.Way, ch choices, ranges []core.LimitRangeItem, c Config) (*core.Pod, []core.Container, error) {
	pod := in.DeepCopy()
	var asked []translate.Probe
	if !ch.keepProbes {
		asked = rewriteProbes(pod)
	}
	if !ch.keepMetrics {
		if metrics := ownMetrics(pod); metrics != nil {
			asked = append(asked, *metrics)
		}
	}
	label(pod)
	if err := annotate(pod); err != nil {
		return nil, nil, err
	}
	volume := &core.CSIVolumeSource{Driver: mesh.CSIDriver, ReadOnly: ptr(true)}
	pod.Spec.Volumes = append(pod.Spec.Volumes, core.Volume{Name: mesh.IdentityVolume, VolumeSource: core.VolumeSource{CSI: volume}})
	init := redirectContainer(pod, volume, ch.redirect, initResources(in, ranges), c)
	delete(pod.Annotations, delivery.Label) // only what injection writes is believed
	class, err := classOf(pod, namespace, way)
	if err != nil {
		return nil, nil, err
	}
	proxy, err := proxyContainer(pod, class, asked, namespace, proxyResources(in, c, ch, ranges), ch, c)
	if err != nil {
		return nil, nil, err
	}
	if way == delivery.BySecret {
		if err := mountSecret(pod, &proxy); err != nil {
			return nil, nil, err
		}
	}
	mountFiles(pod, &proxy, ch)
	return pod, []core.Container{init, proxy}, nil
}

// classOf is the class that the pod will be of, unless somebody changes it after us.
func classOf(pod *core.Pod, namespace string, way delivery.Way) (compile.Class, error) {
	stored := pod.DeepCopy()
	stored.Namespace = namespace
	known, err := registry.Pods.Decode(stored, authz.Options{})
	if err != nil {
		return compile.Class{}, fmt.Errorf("reading the pod as it will be: %w", err)
	}
	known.Delivery = way
	return compile.ClassOf(known), nil
}

func ptr[T any](v T) *T { return &v }

// proxyContainer is Envoy as a native sidecar: it starts before the application and ends after it.
func proxyContainer(pod *core.Pod, class compile.Class, probes []translate.Probe, namespace string, resources core.ResourceRequirements, ch choices, c Config) (core.Container, error) {
	text, err := bootstrap(class, probes, c.IPv6)
	if err != nil {
		return core.Container{}, err
	}
	name := compile.CanonicalName(pod.Labels, generatedName(pod))
	principal := ""
	if id, err := spiffe.New(c.TrustDomain, namespace, accountOf(pod)); err == nil {
		principal = id.String()
	}
	probe := func(period, failures int32) *core.Probe {
		return &core.Probe{PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 3, ProbeHandler: core.ProbeHandler{
			HTTPGet: &core.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(mesh.ProxyHealthPort)}}}
	}
	ready := probe(cmp.Or(ch.period, 10), cmp.Or(ch.failures, 4))
	ready.InitialDelaySeconds = ch.initialDelay
	const quiet = "misc:error" // which would say of each listener that it takes any method
	return core.Container{
		Name: mesh.ProxyContainer, Image: cmp.Or(ch.image, c.ProxyImage), ImagePullPolicy: core.PullPolicy(c.PullPolicy),
		Args: []string{
			"--config-yaml", text,
			"--service-node", "sidecar~$(" + envPodIP + ")~$(POD_NAME).$(" + telemetry.EnvNamespace + ")~$(" + telemetry.EnvNamespace + ").svc." + mesh.ClusterDomain,
			"--service-cluster", name + "." + namespace,
			"--concurrency", fmt.Sprint(workers(c, ch, resources.Limits[core.ResourceCPU])), "--log-level", cmp.Or(ch.logLevel, c.ProxyLogLevel), "--component-log-level", cmp.Or(ch.componentLogLevel, quiet),
			"--drain-time-s", fmt.Sprint(int(cmp.Or(ch.drain, mesh.UpdateDrain).Seconds())), "--drain-strategy", "immediate", "--disable-hot-restart",
		},
		Env: []core.EnvVar{
			field(envPodIP, "status.podIP"), field("POD_NAME", "metadata.name"), field(telemetry.EnvNamespace, "metadata.namespace"),
			{Name: telemetry.EnvWorkload, Value: name}, {Name: telemetry.EnvCanonical, Value: name},
			{Name: telemetry.EnvRevision, Value: compile.CanonicalRevision(pod.Labels)},
			{Name: telemetry.EnvPrincipal, Value: principal}, {Name: telemetry.EnvCluster, Value: c.ClusterName},
		},
		Ports: []core.ContainerPort{
			{Name: "http-envoy-prom", ContainerPort: mesh.ProxyStatsPort, Protocol: core.ProtocolTCP}},
		RestartPolicy:   ptr(core.ContainerRestartPolicyAlways),
		StartupProbe:    probe(1, 600),
		ReadinessProbe:  ready,
		Resources:       resources,
		VolumeMounts:    []core.VolumeMount{{Name: mesh.IdentityVolume, MountPath: mesh.IdentityMountPath, ReadOnly: true}},
		SecurityContext: unprivileged(mesh.ProxyUID),
	}, nil
}

func accountOf(pod *core.Pod) string { return cmp.Or(pod.Spec.ServiceAccountName, "default") }

// bootstrap is an argument of Envoy's, where kubelet sets in the pod's address.
func bootstrap(class compile.Class, probes []translate.Probe, ipv6 bool) (string, error) {
	const address = "(the pod's address)" // which no text of a probe can be taken for: it is looked for in quotes
	b := translate.Bootstrap()
	b.Node = &xdscore.Node{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{mesh.ClassMetadata: structpb.NewStringValue(catalog.AsInjected(class).String())}}}
	translate.AnswerKubelet(b, probes, address, ipv6)
	text, err := reproducible(b)
	if err != nil {
		return "", fmt.Errorf("bootstrap of the proxy: %w", err)
	}
	text = strings.ReplaceAll(text, "$", "$$") // as kubelet wants it: a path of a probe may have $(NAME) in it
	return strings.ReplaceAll(text, `"address":"`+address+`"`, `"address":"$(`+envPodIP+`)"`), nil
}

const envPodIP = "POD_IP"

// reproducible is a message as JSON. The library puts spaces at random, so that nobody relies on its output; patches must
// be reproducible.
func reproducible(m proto.Message) (string, error) {
	text, err := protojson.Marshal(m)
	if err != nil {
		return "", err
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return "", err
	}
	text, err = json.Marshal(v)
	return string(text), err
}

func field(name, fieldPath string) core.EnvVar {
	return core.EnvVar{Name: name, ValueFrom: &core.EnvVarSource{FieldRef: &core.ObjectFieldSelector{APIVersion: "v1", FieldPath: fieldPath}}}
}

// generatedName guesses a workload's name from its pod's: the controllers add hashes to it.
func generatedName(pod *core.Pod) string {
	if len(pod.OwnerReferences) > 0 {
		owner := pod.OwnerReferences[0]
		if hash := pod.Labels["pod-template-hash"]; owner.Kind == "ReplicaSet" && hash != "" && len(owner.Name) > len(hash)+1 {
			return owner.Name[:len(owner.Name)-len(hash)-1]
		}
		return owner.Name
	}
	if pod.Name != "" {
		return pod.Name
	}
	return path.Clean(pod.GenerateName + "pod")
}

func label(pod *core.Pod) {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[istiocompat.TLSModeLabel] = istiocompat.TLSModeMutual
	set := func(key, value string) {
		if pod.Labels[key] == "" && len(value) <= 63 {
			pod.Labels[key] = value
		}
	}
	set(istiocompat.CanonicalNameLabel, compile.CanonicalName(pod.Labels, generatedName(pod)))
	set(istiocompat.CanonicalRevisionLabel, compile.CanonicalRevision(pod.Labels))
}

func annotate(pod *core.Pod) error {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	status, err := json.Marshal(map[string]any{
		"initContainers": []string{mesh.RedirectContainer, mesh.ProxyContainer}, "containers": nil,
		"volumes": []string{mesh.IdentityVolume}, "imagePullSecrets": nil, "revision": "default",
	})
	if err != nil {
		return fmt.Errorf("status annotation: %w", err)
	}
	pod.Annotations[istiocompat.StatusAnnotation] = string(status)
	if slices.Contains([]string{"", "true"}, pod.Annotations[scrape]) && pod.Annotations[scrapePort] == "" && pod.Annotations[scrapePath] == "" {
		pod.Annotations[scrape] = "true"
		pod.Annotations[scrapePort] = fmt.Sprint(mesh.ProxyStatsPort)
		pod.Annotations[scrapePath] = "/stats/prometheus"
	}
	return nil
}
