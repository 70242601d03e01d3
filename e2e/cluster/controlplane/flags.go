package controlplane

import (
	"fmt"
	"strconv"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/components"
)

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func etcdFlags(l layout, p ports) []string {
	client, peer := "http://"+loopback(p.EtcdClient), "http://"+loopback(p.EtcdPeer)
	return []string{
		"--name=default",
		"--data-dir=" + l.file("etcd"),
		"--unsafe-no-fsync",
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=default=" + peer,
		"--log-level=warn",
	}
}

func apiServerFlags(l layout, p ports, o Options) []string {
	flags := []string{
		"--etcd-servers=http://" + loopback(p.EtcdClient),
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(p.APIServer),
		"--cert-dir=" + l.file("certs", components.APIServer),
		"--tls-cert-file=" + l.cert(components.APIServer),
		"--tls-private-key-file=" + l.key(components.APIServer),
		"--client-ca-file=" + l.cert(clusterCA),
		"--authorization-mode=RBAC,Node",
		"--service-cluster-ip-range=" + serviceSubnet,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + l.key(serviceAccounts),
		"--service-account-signing-key-file=" + l.key(serviceAccounts),
		"--endpoint-reconciler-type=none",
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + l.cert(frontProxyCA),
		"--requestheader-allowed-names=" + frontProxy,
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + l.cert(frontProxy),
		"--proxy-client-key-file=" + l.key(frontProxy),
	}
	if o.AuditPolicy != "" {
		flags = append(flags, "--audit-policy-file="+o.AuditPolicy, "--audit-log-path="+l.log("audit"))
	}
	return append(flags, o.APIServerArgs...)
}

// delegated are the flags of a component that asks the API server who may use
// its own endpoints.
func delegated(l layout, name string, port int) []string {
	kubeconfig := l.componentKubeconfig(name)
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--cert-dir=" + l.file("certs", name),
	}
}

func controllerManagerFlags(l layout, p ports) []string {
	return append(delegated(l, components.ControllerManager, p.ControllerManager),
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--service-account-private-key-file="+l.key(serviceAccounts),
		"--root-ca-file="+l.cert(clusterCA),
		"--cluster-signing-cert-file="+l.cert(clusterCA),
		"--cluster-signing-key-file="+l.key(clusterCA),
		"--node-monitor-period=1s",
		"--horizontal-pod-autoscaler-sync-period=5s",
		"--horizontal-pod-autoscaler-cpu-initialization-period=10s",
		"--horizontal-pod-autoscaler-initial-readiness-delay=5s",
	)
}

func schedulerFlags(l layout, p ports) []string {
	return append(delegated(l, components.Scheduler, p.Scheduler), "--leader-elect=false")
}

func nodeFlags(l layout, o Options, c *claim) []string {
	return []string{
		"--name=" + o.Name,
		"--dir=" + l.dir,
		"--kubeconfig=" + l.componentKubeconfig(nodeName),
		"--image-map=" + o.ImageMap,
		"--pod-subnet=" + c.subnet,
		fmt.Sprintf("--port=%d", c.ports.Node),
		fmt.Sprintf("--api-server-port=%d", c.ports.APIServer),
	}
}

func metricsServerFlags(l layout, p ports) []string {
	return append(delegated(l, metricsServer, p.MetricsServer),
		"--kubelet-insecure-tls",
		"--kubelet-use-node-status-port",
		"--kubelet-preferred-address-types=InternalIP",
		"--metric-resolution=10s",
		"--kubelet-request-timeout=5s",
	)
}
