package controlplane

import (
	"fmt"
	"net"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/components"
)

const (
	serviceSubnet   = "10.96.0.0/16"
	masters         = "system:masters"
	clusterCA       = "ca"
	frontProxyCA    = "front-proxy-ca"
	frontProxy      = "front-proxy-client"
	serviceAccounts = "service-accounts"
	adminName       = "admin"
	nodeName        = "node"
	metricsServer   = "metrics-server"
)

// createCredentials creates all keys, certificates and kubeconfigs.
func createCredentials(l layout, apiServer string) error {
	for _, dir := range []string{l.file("pki"), l.file("kubeconfigs")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("creating %s: %w", dir, err)
		}
	}
	ca, err := newAuthority(l, clusterCA)
	if err != nil {
		return err
	}
	hosts := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1)}
	if err := ca.server(l, components.APIServer, hosts, ips); err != nil {
		return err
	}
	front, err := newAuthority(l, frontProxyCA)
	if err != nil {
		return err
	}
	if err := front.client(l, frontProxy, frontProxy); err != nil {
		return err
	}
	if _, err := newKey(l.key(serviceAccounts)); err != nil {
		return err
	}
	users := []struct {
		name, user string
		groups     []string
	}{
		{adminName, "admin", []string{masters}},
		{components.ControllerManager, "system:kube-controller-manager", nil},
		{components.Scheduler, "system:kube-scheduler", nil},
		// The node watches all ConfigMaps and Secrets, which a kubelet may not.
		{nodeName, "node", []string{masters}},
		{metricsServer, metricsServer, nil},
	}
	for _, u := range users {
		if err := ca.client(l, u.name, u.user, u.groups...); err != nil {
			return err
		}
		if err := writeKubeconfig(l, u.name, l.componentKubeconfig(u.name), apiServer); err != nil {
			return err
		}
	}
	return nil
}

// writeKubeconfig writes a kubeconfig that holds its certificates.
func writeKubeconfig(l layout, name, path, apiServer string) error {
	contents := make(map[string][]byte)
	for _, file := range []string{l.cert(clusterCA), l.cert(name), l.key(name)} {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading a credential: %w", err)
		}
		contents[file] = data
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["tokenbudget"] = &clientcmdapi.Cluster{
		Server: apiServer, CertificateAuthorityData: contents[l.cert(clusterCA)],
	}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: contents[l.cert(name)], ClientKeyData: contents[l.key(name)],
	}
	config.Contexts["tokenbudget"] = &clientcmdapi.Context{Cluster: "tokenbudget", AuthInfo: name}
	config.CurrentContext = "tokenbudget"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("writing the kubeconfig of %s: %w", name, err)
	}
	return nil
}
