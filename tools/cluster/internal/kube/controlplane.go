package kube

import "github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"

// ControlPlane is etcd and the API server, then what needs them, in the order of start. All run on the first node.
func (p Plan) ControlPlane() []Program {
	return []Program{p.etcd(), p.apiServer(), p.controllerManager(), p.scheduler()}
}

func (p Plan) etcd() Program {
	return Program{"etcd", []string{
		p.Binaries.Path("etcd", "etcd"),
		"--name=" + p.Name,
		"--data-dir=" + p.Root + "/etcd",
		"--listen-client-urls=https://127.0.0.1:2379",
		"--advertise-client-urls=https://127.0.0.1:2379",
		"--listen-peer-urls=https://127.0.0.1:2380",
		"--initial-advertise-peer-urls=https://127.0.0.1:2380",
		"--initial-cluster=" + p.Name + "=https://127.0.0.1:2380",
		"--cert-file=" + p.pki("etcd.crt"), "--key-file=" + p.pki("etcd.key"),
		"--trusted-ca-file=" + p.pki("etcd-ca.crt"), "--client-cert-auth",
		"--peer-cert-file=" + p.pki("etcd.crt"), "--peer-key-file=" + p.pki("etcd.key"),
		"--peer-trusted-ca-file=" + p.pki("etcd-ca.crt"), "--peer-client-cert-auth",
		// The data lives no longer than the cluster.
		"--unsafe-no-fsync",
		// A lone member elects itself, after this long.
		"--heartbeat-interval=25", "--election-timeout=250",
		"--log-level=warn",
	}}
}

func (p Plan) apiServer() Program {
	return Program{"kube-apiserver", []string{
		p.Binaries.Path("kubernetes", "kube-apiserver"),
		// Else the kubernetes Service points at the wrong place.
		"--advertise-address=" + p.Nodes[0].IP().String(),
		"--secure-port=" + APIPort,
		"--tls-cert-file=" + p.pki("apiserver.crt"), "--tls-private-key-file=" + p.pki("apiserver.key"),
		"--client-ca-file=" + p.pki("ca.crt"),
		"--etcd-servers=https://127.0.0.1:2379",
		"--etcd-cafile=" + p.pki("etcd-ca.crt"),
		"--etcd-certfile=" + p.pki("etcd-client.crt"), "--etcd-keyfile=" + p.pki("etcd-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority=" + p.pki("ca.crt"),
		"--kubelet-client-certificate=" + p.pki("kubelet-client.crt"),
		"--kubelet-client-key=" + p.pki("kubelet-client.key"),
		"--proxy-client-cert-file=" + p.pki("front-proxy.crt"), "--proxy-client-key-file=" + p.pki("front-proxy.key"),
		"--requestheader-client-ca-file=" + p.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--service-account-issuer=" + issuer,
		"--api-audiences=" + issuer,
		"--service-account-signing-key-file=" + p.pki("service-account.key"),
		"--service-account-key-file=" + p.pki("service-account.pub"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + list(network.ServiceRanges(p.Families)),
		"--allow-privileged=true",
		"--profiling=false",
		// Beta, and off unless switched on: the mesh publishes its roots there too.
		"--feature-gates=ClusterTrustBundle=true", "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
	}}
}

func (p Plan) controllerManager() Program {
	return Program{"kube-controller-manager", []string{
		p.Binaries.Path("kubernetes", "kube-controller-manager"),
		"--kubeconfig=" + p.kubeconfig("controller-manager"),
		"--authentication-kubeconfig=" + p.kubeconfig("controller-manager"),
		"--authorization-kubeconfig=" + p.kubeconfig("controller-manager"),
		"--bind-address=127.0.0.1",
		"--use-service-account-credentials",
		"--service-account-private-key-file=" + p.pki("service-account.key"),
		"--root-ca-file=" + p.pki("ca.crt"),
		"--flex-volume-plugin-dir=" + p.Root + "/volumeplugins",
		"--leader-elect=false",
		// Tests wait for endpoints: no batching.
		"--endpointslice-updates-batch-period=0s",
		"--endpoint-updates-batch-period=0s",
		"--kube-api-qps=100", "--kube-api-burst=200",
		"--profiling=false",
	}}
}

func (p Plan) scheduler() Program {
	return Program{"kube-scheduler", []string{
		p.Binaries.Path("kubernetes", "kube-scheduler"),
		"--kubeconfig=" + p.kubeconfig("scheduler"),
		"--authentication-kubeconfig=" + p.kubeconfig("scheduler"),
		"--authorization-kubeconfig=" + p.kubeconfig("scheduler"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--profiling=false",
	}}
}
