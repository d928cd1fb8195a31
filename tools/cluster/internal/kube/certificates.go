package kube

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kubeapi"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/pki"
)

// Admin are the credentials of the cluster's owner.
type Admin struct {
	CA   []byte
	Pair pki.Pair
}

// Client that acts as the admin towards server.
func (a Admin) Client(server string) (*kubeapi.Client, error) {
	return kubeapi.New(server, a.CA, a.Pair.Cert, a.Pair.Key)
}

// issue is one certificate to write: under pki/, or as a user's kubeconfig.
type issue struct {
	authority  string
	file       string
	kubeconfig string
	leaf       pki.Leaf
}

// WriteCertificates makes the authorities, certificates and kubeconfigs of the whole cluster. The three authorities are
// separate so that, say, a kubelet's certificate opens neither etcd nor the door of the aggregation layer.
func (p Plan) WriteCertificates(now time.Time) (Admin, error) {
	authorities := map[string]*pki.Authority{}
	for _, name := range []string{"ca", "etcd-ca", "front-proxy-ca"} {
		authority, err := pki.NewAuthority(p.Name+"-"+name, now)
		if err != nil {
			return Admin{}, err
		}
		authorities[name] = authority
		if err := os.WriteFile(p.pki(name+".crt"), authority.CertPEM(), 0o644); err != nil {
			return Admin{}, fmt.Errorf("write the certificate of %s: %w", name, err)
		}
	}
	admin := Admin{CA: authorities["ca"].CertPEM()}
	for _, i := range p.issues() {
		pair, err := authorities[i.authority].Issue(i.leaf, now)
		if err != nil {
			return Admin{}, err
		}
		if i.kubeconfig == "admin" {
			admin.Pair = pair
		}
		if i.file != "" {
			if err := pair.Write(p.pki(i.file)); err != nil {
				return Admin{}, err
			}
			continue
		}
		config := kubeapi.Kubeconfig(p.Name, p.APIServer(), admin.CA, pair.Cert, pair.Key)
		if err := os.WriteFile(p.kubeconfig(i.kubeconfig), config, 0o600); err != nil {
			return Admin{}, fmt.Errorf("write the kubeconfig of %s: %w", i.kubeconfig, err)
		}
	}
	private, public, err := pki.TokenKeys()
	if err != nil {
		return Admin{}, err
	}
	if err := os.WriteFile(p.pki("service-account.key"), private, 0o600); err != nil {
		return Admin{}, fmt.Errorf("write the service-account key: %w", err)
	}
	if err := os.WriteFile(p.pki("service-account.pub"), public, 0o644); err != nil {
		return Admin{}, fmt.Errorf("write the service-account public key: %w", err)
	}
	// Later commands act as the admin too.
	return admin, admin.Pair.Write(p.pki("admin"))
}

func (p Plan) issues() []issue {
	localhost := net.IPv4(127, 0, 0, 1)
	user := func(name, commonName string, groups ...string) issue {
		return issue{authority: "ca", kubeconfig: name, leaf: pki.Leaf{CommonName: commonName, Organization: groups, Client: true}}
	}
	issues := []issue{
		{authority: "etcd-ca", file: "etcd", leaf: pki.Leaf{CommonName: "etcd", IPs: []net.IP{localhost}, Server: true, Client: true}},
		{authority: "etcd-ca", file: "etcd-client", leaf: pki.Leaf{CommonName: "kube-apiserver", Client: true}},
		{authority: "front-proxy-ca", file: "front-proxy", leaf: pki.Leaf{CommonName: "front-proxy", Client: true}},
		{authority: "ca", file: "kubelet-client", leaf: pki.Leaf{CommonName: KubeletClient, Client: true}},
		{authority: "ca", file: "apiserver", leaf: pki.Leaf{
			CommonName: "kube-apiserver",
			DNSNames: []string{
				"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + Domain,
			},
			// The machine comes by way of the forwarder on its loopback.
			IPs:    []net.IP{localhost, p.Nodes[0].IP().AsSlice(), net.ParseIP(apiService)},
			Server: true,
		}},
		user("admin", "kubernetes-admin", "system:masters"),
		user("controller-manager", "system:kube-controller-manager"),
		user("scheduler", "system:kube-scheduler"),
		user("kube-proxy", "system:kube-proxy"),
	}
	for _, node := range p.Nodes {
		issues = append(issues,
			user(node.Name, "system:node:"+node.Name, "system:nodes"),
			issue{authority: "ca", file: node.Name + "-serving", leaf: pki.Leaf{
				CommonName: "system:node:" + node.Name, Organization: []string{"system:nodes"},
				DNSNames: []string{node.Name}, IPs: []net.IP{node.IP().AsSlice()}, Server: true,
			}},
		)
	}
	return issues
}

// KubeletClient is the API server's name towards kubelets.
const KubeletClient = "kube-apiserver-kubelet-client"
