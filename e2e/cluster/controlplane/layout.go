// Package controlplane runs a Kubernetes control plane and its node as child
// processes of one supervisor, all below one folder.
package controlplane

import "path/filepath"

// layout names the files of a cluster.
type layout struct {
	dir string // absolute
}

func (l layout) file(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// Kubeconfig of the cluster's administrator.
func (l layout) kubeconfig() string { return l.file("kubeconfig") }

// Ready appears when the cluster is.
func (l layout) ready() string { return l.file("ready") }

func (l layout) supervisorPID() string { return l.file("supervisor.pid") }
func (l layout) lock() string          { return l.file("lock") }
func (l layout) log(name string) string {
	return l.file("logs", name+".log")
}

func (l layout) cert(name string) string { return l.file("pki", name+".crt") }
func (l layout) key(name string) string  { return l.file("pki", name+".key") }

// componentKubeconfig is how a component reaches the API server.
func (l layout) componentKubeconfig(name string) string {
	return l.file("kubeconfigs", name)
}

// leftovers are what an earlier run may have left and a new one starts without.
func (l layout) leftovers() []string {
	return []string{
		l.ready(), l.kubeconfig(), l.supervisorPID(), l.file("etcd"), l.file("pki"),
		l.file("kubeconfigs"), l.file("pods"), l.file("certs"), l.file("logs"),
	}
}
