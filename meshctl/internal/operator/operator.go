// Package operator calls the operator API of the components: over a port-forward through the API server, with TLS
// verified by the mesh's own root and the component's SPIFFE ID, and a token made for the occasion.
package operator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

const (
	tokenLifetime  = 10 * time.Minute // the least that Kubernetes gives
	connectTimeout = 15 * time.Second
	callTimeout    = 15 * time.Second // of a call whose answer is read whole
)

// componentLabel names the component that a pod is of.
const componentLabel = "app.kubernetes.io/name"

// Pods returns the ready pods of a component (pilot, citadel, mixer, agent).
func Pods(ctx context.Context, c *kube.Client, component string) ([]corev1.Pod, error) {
	ready, others, err := list(ctx, c, ","+componentLabel+"="+component)
	if err != nil {
		return nil, fmt.Errorf("looking for the pods of %s: %w", component, err)
	}
	return ready, absent(component, ready, others)
}

// Everyone returns the pods of all components, and apart from them those that are not ready.
func Everyone(ctx context.Context, c *kube.Client) (ready, others []corev1.Pod, err error) {
	ready, others, err = list(ctx, c, ","+componentLabel+" in (pilot,citadel,mixer,agent)")
	if err != nil {
		return nil, nil, fmt.Errorf("looking for the pods of the control plane: %w", err)
	}
	return ready, others, absent("Bulwark", ready, others)
}

// absent returns an error if nobody is ready: what is not there must be installed, what does not run must be looked at.
func absent(what string, ready, others []corev1.Pod) error {
	switch {
	case len(ready) > 0:
		return nil
	case len(others) == 0:
		return fmt.Errorf("%s has no pod in namespace %s, %w (meshctl install)", what, mesh.Namespace, kube.ErrNotInstalled)
	default:
		return fmt.Errorf("%s is %w: pod %s: %s (meshctl verify)", what, kube.ErrNotRunning, others[0].Name, cmp.Or(kube.PodTrouble(&others[0]), "not ready yet"))
	}
}

// Component says which component a pod is of.
func Component(pod *corev1.Pod) string { return pod.Labels[componentLabel] }

func list(ctx context.Context, c *kube.Client, selector string) (ready, others []corev1.Pod, err error) {
	all, err := c.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: mesh.PartOfLabel + "=" + mesh.PartOfValue + selector})
	if err != nil {
		return nil, nil, err
	}
	for _, pod := range all.Items {
		isReady := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		switch {
		case pod.DeletionTimestamp != nil:
		case isReady:
			ready = append(ready, pod)
		default:
			others = append(others, pod)
		}
	}
	return ready, others, nil
}

// Access is what every call of the operator API needs: the mesh's roots and trust domain, and a token. One serves any
// number of connections, and is safe for concurrent use.
type Access struct {
	client *kube.Client
	domain spiffeid.TrustDomain
	roots  *x509bundle.Bundle
	token  func(context.Context) (string, error)
}

// Open reads the mesh's roots and trust domain.
func Open(ctx context.Context, c *kube.Client) (*Access, error) {
	domain, err := trustDomain(ctx, c)
	if err != nil {
		return nil, err
	}
	bundle, err := c.CoreV1().ConfigMaps(mesh.Namespace).Get(ctx, mesh.TrustBundleConfig, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the mesh's trust bundle: %w", err)
	}
	roots, err := x509bundle.Parse(domain, []byte(bundle.Data[mesh.RootCertKey]))
	if err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s: %w", mesh.Namespace, mesh.TrustBundleConfig, err)
	}
	return &Access{client: c, domain: domain, roots: roots, token: cachedToken(c)}, nil
}

// TrustDomain is the mesh's.
func (a *Access) TrustDomain() string { return a.domain.Name() }

// Connection is an open way to one pod's operator API. Close it.
type Connection struct {
	client *http.Client
	config *tls.Config
	token  func(context.Context) (string, error)
	base   string
	stop   chan struct{}
}

// Connect opens a way to a pod. Who calls several opens an Access first.
func Connect(ctx context.Context, c *kube.Client, pod *corev1.Pod) (*Connection, error) {
	access, err := Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return access.Connect(ctx, pod)
}

// Connect opens a way to a pod.
func (a *Access) Connect(ctx context.Context, pod *corev1.Pod) (*Connection, error) {
	id, err := spiffe.New(a.domain.Name(), mesh.Namespace, pod.Spec.ServiceAccountName)
	if err != nil {
		return nil, err
	}
	config := mtls.ClientWithoutCert(a.roots, mtls.OneOf(id))
	port, stop, err := forward(ctx, a.client, pod, mesh.OperatorPort)
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s/%s (needs the right `create pods/portforward` in %s): %w", pod.Namespace, pod.Name, mesh.Namespace, err)
	}
	return &Connection{
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: config}}, config: config,
		token: a.token,
		base:  fmt.Sprintf("https://127.0.0.1:%d", port),
		stop:  stop,
	}, nil
}

// Certificate returns the component's own certificate, which it shows in every handshake.
func (c *Connection) Certificate(ctx context.Context) (*x509.Certificate, error) {
	conn, err := (&tls.Dialer{Config: c.config}).DialContext(ctx, "tcp", strings.TrimPrefix(c.base, "https://"))
	if err != nil {
		return nil, fmt.Errorf("handshake with the component: %w", err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// Close ends the port-forward.
func (c *Connection) Close() {
	c.client.CloseIdleConnections()
	close(c.stop)
}

// RoundTrip implements http.RoundTripper towards the pod: the path is kept, host and credentials are set.
func (c *Connection) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := c.token(r.Context())
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "https", strings.TrimPrefix(c.base, "https://")
	r.Host = r.URL.Host
	r.Header.Set("Authorization", "Bearer "+token)
	return c.client.Transport.RoundTrip(r)
}

// Get opens a path; the caller closes the body.
func (c *Connection) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		message, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, &refusal{resp.StatusCode, path + ": " + resp.Status + ": " + printable.Text(strings.TrimSpace(string(message)))}
	}
	return resp.Body, nil
}

// refusal is an answer of a component that is not what was asked for.
type refusal struct {
	code int
	text string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

// StatusCode is that of HTTP; see kube.FailureOf.
func (r *refusal) StatusCode() int { return r.code }

// GetJSON reads a path into out.
func (c *Connection) GetJSON(ctx context.Context, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := c.Get(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(out)
}

// PostJSON sends in to a path as JSON and reads the answer into out, unless that is nil.
func (c *Connection) PostJSON(ctx context.Context, path string, in, out any) error {
	return c.send(ctx, http.MethodPost, path, in, out)
}

// Delete deletes what is at a path.
func (c *Connection) Delete(ctx context.Context, path string) error {
	return c.send(ctx, http.MethodDelete, path, nil, nil)
}

func (c *Connection) send(ctx context.Context, method, path string, in, out any) error {
	content, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	resp, err := c.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		message, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return &refusal{resp.StatusCode, printable.Text(strings.TrimSpace(string(message)))}
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// trustDomain is what Citadel was told.
func trustDomain(ctx context.Context, c *kube.Client) (spiffeid.TrustDomain, error) {
	list, err := c.CoreV1().Pods(mesh.Namespace).List(ctx, metav1.ListOptions{LabelSelector: componentLabel + "=citadel"})
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("reading the mesh's trust domain off Citadel's pod: %w", err)
	}
	domain := mesh.DefaultTrustDomain
	for _, pod := range list.Items {
		for _, container := range pod.Spec.Containers {
			for _, arg := range container.Args {
				if v, ok := strings.CutPrefix(arg, "--trustDomain="); ok {
					domain = v
				}
			}
		}
	}
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return td, fmt.Errorf("trust domain of Citadel's pod: %w", err)
	}
	return td, nil
}

// noting keeps the status that the API server answered with: the port-forward makes a text of a refusal, which no longer tells a
// missing right from a server that is away. It is read when the port-forward has ended.
type noting struct {
	http.RoundTripper
	code int
}

// RoundTrip implements http.RoundTripper.
func (n *noting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := n.RoundTripper.RoundTrip(r)
	if err == nil {
		n.code = resp.StatusCode
	}
	return resp, err
}

// Forward opens a local port to a port of a pod. Call stop to close it.
func Forward(ctx context.Context, c *kube.Client, pod *corev1.Pod, port int) (local uint16, stop func(), err error) {
	local, end, err := forward(ctx, c, pod, port)
	if err != nil {
		return 0, nil, fmt.Errorf("port-forward to pod %s/%s (needs the right `create pods/portforward` in %s): %w", pod.Namespace, pod.Name, pod.Namespace, err)
	}
	return local, func() { close(end) }, nil
}

// forward opens a local port to a port of the pod, and closes it when the returned channel is closed.
func forward(ctx context.Context, c *kube.Client, pod *corev1.Pod, port int) (uint16, chan struct{}, error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return 0, nil, err
	}
	url := c.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	answer := &noting{RoundTripper: transport}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: answer}, http.MethodPost, url)
	stop, ready := make(chan struct{}), make(chan struct{})
	var trouble bytes.Buffer
	fw, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, &trouble)
	if err != nil {
		return 0, nil, err
	}
	failed := make(chan error, 1)
	go func() { failed <- fw.ForwardPorts() }() // ends when stop is closed or the connection breaks
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	select {
	case <-ready:
	case err := <-failed:
		if answer.code >= http.StatusBadRequest {
			return 0, nil, &refusal{answer.code, err.Error()}
		}
		return 0, nil, errors.Join(err, errors.New("forwarding ended"))
	case <-ctx.Done():
		close(stop)
		return 0, nil, ctx.Err()
	}
	ports, err := fw.GetPorts()
	if err != nil {
		close(stop)
		return 0, nil, err
	}
	return ports[0].Local, stop, nil
}

// cachedToken returns a function that makes operator tokens, anew when the last has half of its life behind it.
func cachedToken(c *kube.Client) func(context.Context) (string, error) {
	var mu sync.Mutex
	var token string
	var renew time.Time
	return func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if token != "" && time.Now().Before(renew) {
			return token, nil
		}
		seconds := int64(tokenLifetime.Seconds())
		got, err := c.CoreV1().ServiceAccounts(mesh.Namespace).CreateToken(ctx, mesh.OperatorAccount, &authv1.TokenRequest{
			Spec: authv1.TokenRequestSpec{Audiences: []string{mesh.OperatorAudience}, ExpirationSeconds: &seconds},
		}, metav1.CreateOptions{})
		if err != nil {
			return "", fmt.Errorf("making an operator token (needs the right `create serviceaccounts/token` on %s/%s): %w", mesh.Namespace, mesh.OperatorAccount, err)
		}
		token, renew = got.Status.Token, time.Now().Add(tokenLifetime/2)
		return token, nil
	}
}
