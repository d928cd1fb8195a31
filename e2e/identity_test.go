package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Claims of the identity of workloads. Most of their time is the life of a certificate that has to pass, so they are tried
// at the same time.
func TestIdentity(t *testing.T) {
	bare := deployBare(t)
	for _, claim := range []struct {
		name string
		try  func(context.Context, bareScene) (string, error)
	}{
		{"SPIFFEClientsSpeakMutualTLSThroughRotations", spiffeClientsSpeakMutualTLS},
		{"TokensAreForOneAudience", tokensAreForOneAudience},
		{"WorkloadAPIDemandsTheSecurityHeader", securityHeaderIsDemanded},
		{"FilesArePrivateAndChangeInOneStep", filesArePrivate},
		{"NobodyReachesTheSocketOfAnother", nobodyReachesTheSocketOfAnother},
		{"NobodyGetsTheIdentityOfAnother", nobodyGetsTheIdentityOfAnother},
		{"AnAgentReadsItsOwnNodeAlone", anAgentReadsItsOwnNodeAlone},
	} {
		t.Run(claim.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			happened, err := claim.try(ctx, bare)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(happened)
		})
	}
	t.Run("RevokedIsDeniedAtOnceAndNotRenewed", func(t *testing.T) {
		t.Parallel()
		prove(t, "revoked", revokedIsDenied)
	})
	t.Run("SecretsServeProxiesAndRotate", func(t *testing.T) {
		t.Parallel()
		proveFor(t, "by-secret", 5*time.Minute, secretsServeProxies, "bulwark.dev/identity: secret")
	})
}

// bareScene is a namespace whose pods have identities and no proxy.
type bareScene struct {
	*lab.Lab
	Namespace string
}

func (s bareScene) id(account string) string {
	return spiffe.ID{TrustDomain: mesh.DefaultTrustDomain, Namespace: s.Namespace, ServiceAccount: account}.String()
}

func deployBare(t *testing.T) bareScene {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := bareScene{cluster, "e2e-bare-outside"} // its pods have no proxy that a failed test could ask
	cleanUp(t, s.Namespace)
	if err := s.Apply(ctx, fillIn(barePods, s.Namespace, s.Tag)); err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(ctx, s.Namespace, time.Minute); err != nil {
		t.Fatal(err)
	}
	return s
}

// barePods has a server and three pods that wait to be told what to do. The intruder lies in the attributes of its volume
// about whose it is, and has a second volume whose socket is a proxy's.
var barePods = `
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: NAMESPACE}
spec:
  selector: {app: server}
  ports: [{name: https, port: 8443}]
` + barePod("server", `
        - name: server
          IMAGE
          args: [spiffe, serve]
          readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
          securityContext: {RESTRICTED}
          volumeMounts: [SPIFFE]
`, ownSocket) + barePod("caller", bareClient, ownSocket) + barePod("reader", `
        - name: reader
          IMAGE
          args: [wait]
          securityContext: {runAsGroup: 65532, RESTRICTED}
          volumeMounts: [SPIFFE, {name: identity, mountPath: /identity, readOnly: true}]
        - name: other
          IMAGE
          args: [wait]
          securityContext: {runAsUser: 65531, runAsGroup: 65531, RESTRICTED}
          volumeMounts: [{name: identity, mountPath: /identity, readOnly: true}]
`, `
        - name: identity
          emptyDir: {medium: Memory, sizeLimit: 1Mi}
        - name: spiffe
          csi: {driver: csi.bulwark.dev, readOnly: true, volumeAttributes: {files: identity, uid: "65532", gid: "65532"}}
`) + barePod("intruder", `
        - name: client
          IMAGE
          args: [wait]
          securityContext: {RESTRICTED}
          volumeMounts: [SPIFFE, {name: proxys, mountPath: /proxys, readOnly: true}]
`, `
        - name: spiffe
          csi:
            driver: csi.bulwark.dev
            readOnly: true
            volumeAttributes:
              access: any
              csi.storage.k8s.io/serviceAccount.name: server
              csi.storage.k8s.io/pod.name: server
              csi.storage.k8s.io/pod.namespace: bulwark-system
        - name: proxys
          csi: {driver: csi.bulwark.dev, readOnly: true}
`)

// A container that waits, and the volume whose socket gives its pod an identity.
const (
	bareClient = `
        - name: client
          IMAGE
          args: [wait]
          securityContext: {RESTRICTED}
          volumeMounts: [SPIFFE]
`
	ownSocket = `
        - name: spiffe
          csi: {driver: csi.bulwark.dev, readOnly: true, volumeAttributes: {access: any}}
`
)

// barePod is an account and a Deployment of one pod without a proxy. The words in capitals are for fillIn.
func barePod(account, containers, volumes string) string {
	return strings.NewReplacer("ACCOUNT", account, "CONTAINERS", containers, "VOLUMES", volumes).Replace(`
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: ACCOUNT, namespace: NAMESPACE}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ACCOUNT, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: ACCOUNT}}
  template:
    metadata: {labels: {app: ACCOUNT}}
    spec:
      serviceAccountName: ACCOUNT
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:CONTAINERS
      volumes:VOLUMES
`)
}

// fillIn puts a namespace and the sample's image into manifests of bare pods.
func fillIn(manifests, namespace, tag string) string {
	return strings.NewReplacer(
		"NAMESPACE", namespace,
		"IMAGE", "image: docker.io/bulwark/sample:"+tag+"\n          imagePullPolicy: IfNotPresent",
		"RESTRICTED", "allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}",
		"SPIFFE", "{name: spiffe, mountPath: /spiffe, readOnly: true}",
	).Replace(manifests)
}

func spiffeClientsSpeakMutualTLS(ctx context.Context, s bareScene) (string, error) {
	call := func(server string, flags ...string) (sample.CallResult, error) {
		return lab.ExecJSON[sample.CallResult](ctx, s.Lab, s.Namespace, "caller", "client",
			append([]string{"sample", "spiffe", "call", "https://server." + s.Namespace + ":8443/", "--server=" + server}, flags...)...)
	}
	wrong, err := call(s.id("caller"), "--duration=100ms")
	if err != nil {
		return "", err
	}
	if len(wrong.Errors) != wrong.Requests || !strings.Contains(wrong.Errors[0], "unexpected ID") {
		return "", fmt.Errorf("a server of another identity than was asked for: %+v", wrong)
	}
	got, err := call(s.id("server"), "--rotations=1", "--duration=50s")
	if err != nil {
		return "", err
	}
	if got.Caller != s.id("caller") || len(got.Errors) > 0 || len(got.Servers) < 2 || len(got.Clients) < 2 {
		return "", fmt.Errorf("got %+v, want the caller's identity, no error and two certificates on each side", got)
	}
	return fmt.Sprintf("%d connections, both sides with new certificates, 0 failed", got.Requests), nil
}

func tokensAreForOneAudience(ctx context.Context, s bareScene) (string, error) {
	token, err := lab.ExecJSON[sample.JWTResult](ctx, s.Lab, s.Namespace, "caller", "client", "sample", "spiffe", "jwt", "ledger")
	if err != nil {
		return "", err
	}
	if token.ID != s.id("caller") || len(token.Audience) != 1 || token.Audience[0] != "ledger" || !token.Expires.After(time.Now()) {
		return "", fmt.Errorf("got the token of %s for %q until %s", token.ID, token.Audience, token.Expires)
	}
	validate := func(audience, token string) (sample.ValidateResult, error) {
		return lab.ExecJSON[sample.ValidateResult](ctx, s.Lab, s.Namespace, "intruder", "client", "sample", "spiffe", "validate", audience, token)
	}
	good, err := validate("ledger", token.Token)
	if err != nil {
		return "", err
	}
	if good.ByAPI != token.ID || good.ByBundle != token.ID {
		return "", fmt.Errorf("another pod says of the token: %+v", good)
	}
	dot := strings.LastIndexByte(token.Token, '.')
	for name, bad := range map[string][2]string{
		"another audience":          {"payroll", token.Token},
		"a signature that is short": {"ledger", token.Token[:len(token.Token)-4]},
		"no signature":              {"ledger", token.Token[:dot+1]},
	} {
		got, err := validate(bad[0], bad[1])
		if err != nil {
			return "", err
		}
		if got.ByAPI != "" || got.ByBundle != "" || got.Code != "InvalidArgument" {
			return "", fmt.Errorf("%s: %+v, want InvalidArgument", name, got)
		}
	}
	return "valid by the Workload API and by the bundle; for another audience or without its signature by neither", nil
}

func securityHeaderIsDemanded(ctx context.Context, s bareScene) (string, error) {
	codes, err := lab.ExecJSON[map[string]string](ctx, s.Lab, s.Namespace, "caller", "client", "sample", "spiffe", "bare")
	if err != nil {
		return "", err
	}
	if len(codes) != 5 {
		return "", fmt.Errorf("%d methods were called", len(codes))
	}
	for method, code := range codes {
		if code != "InvalidArgument" {
			return "", fmt.Errorf("%s without the header: %s, want InvalidArgument", method, code)
		}
	}
	return "InvalidArgument from each of 5 methods", nil
}

func filesArePrivate(ctx context.Context, s bareScene) (string, error) {
	other, err := lab.ExecJSON[sample.FilesResult](ctx, s.Lab, s.Namespace, "reader", "other", "sample", "files", "/identity")
	if err != nil {
		return "", err
	}
	if key := other.Files["tls.key"]; !strings.Contains(key.Error, "permission denied") || other.Reads != 0 {
		return "", fmt.Errorf("another user sees the key as %+v and has read it %d times", key, other.Reads)
	}
	if roots := other.Files["ca.crt"]; roots.Error != "" {
		return "", fmt.Errorf("another user sees the roots as %+v", roots)
	}
	got, err := lab.ExecJSON[sample.FilesResult](ctx, s.Lab, s.Namespace, "reader", "reader", "sample", "files", "/identity", "--rotations=1", "--duration=50s")
	if err != nil {
		return "", err
	}
	for name, mode := range map[string]string{"tls.crt": "-r--r--r--", "tls.key": "-r--------", "ca.crt": "-r--r--r--", "bundle.json": "-r--r--r--"} {
		if f := got.Files[name]; f.Mode != mode || f.UID != 65532 || f.GID != 65532 || f.Error != "" {
			return "", fmt.Errorf("%s is %+v, want %s of 65532:65532", name, f, mode)
		}
	}
	if got.Error != "" || got.ID != s.id("reader") || len(got.Serials) < 2 {
		return "", fmt.Errorf("got %+v, want two certificates of %s", got, s.id("reader"))
	}
	return fmt.Sprintf("read %d times, each time a certificate with its key, through a rotation; the key is closed to another user", got.Reads), nil
}

// The intruder's own socket answers for the intruder, whatever it wrote into its volume. The other socket that it can see
// is the one of its own pod's proxy, which it may not connect to.
func nobodyReachesTheSocketOfAnother(ctx context.Context, s bareScene) (string, error) {
	who, err := lab.ExecJSON[sample.SVIDResult](ctx, s.Lab, s.Namespace, "intruder", "client", "sample", "svid", "/spiffe/agent.sock")
	if err != nil {
		return "", err
	}
	if who.ID != s.id("intruder") {
		return "", fmt.Errorf("a pod that forged its volume's attributes is %s", who.ID)
	}
	sockets, err := lab.ExecJSON[[]sample.Socket](ctx, s.Lab, s.Namespace, "intruder", "client", "sample", "sockets")
	if err != nil {
		return "", err
	}
	reached := map[string]string{}
	for _, found := range sockets {
		reached[found.Path] = found.Error
	}
	if e, ok := reached["/spiffe/agent.sock"]; !ok || e != "" || len(reached) != 2 {
		return "", fmt.Errorf("the intruder sees the sockets %v, want its own and its proxy's", reached)
	}
	if e, ok := reached["/proxys/agent.sock"]; !ok || !strings.Contains(e, "permission denied") {
		return "", fmt.Errorf("connecting to the proxy's socket as another user: %q", e)
	}
	outside, err := lab.ExecJSON[[]sample.Socket](ctx, s.Lab, s.Namespace, "intruder", "client", "sample", "sockets", "/var/lib/kubelet", "/spiffe/../../../..", "/proc/1/root")
	if err != nil {
		return "", err
	}
	for _, found := range outside {
		if found.Error == "" && !strings.HasSuffix(found.Path, "/spiffe/agent.sock") {
			return "", errors.New("the intruder reached " + found.Path)
		}
	}
	return "of all that a pod can see, its own socket answers, and for itself", nil
}
