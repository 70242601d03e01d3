// Package pod runs the containers of pods as processes of this machine and
// reports them to the API server as a kubelet does.
package pod

import (
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/image"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/volumes"
)

// Runtime is what all pods of a node share.
type Runtime struct {
	Client   kubernetes.Interface
	Recorder record.EventRecorder
	Services corelisters.ServiceLister
	Volumes  *volumes.Manager
	Images   image.Map
	Spawner  *proc.Spawner
	// ClusterDir is the cluster's absolute folder.
	ClusterDir string
	// HostIP is the node's address.
	HostIP string
	// APIServerPort is where pods reach the API server on 127.0.0.1.
	APIServerPort int
	Allocatable   corev1.ResourceList
}

// podDir is the folder of a pod's volumes and sandboxes.
func (r *Runtime) podDir(pod *corev1.Pod) string {
	return filepath.Join(r.ClusterDir, "pods", string(pod.UID))
}

// logDir is the folder of a container's logs; it outlives the pod.
func (r *Runtime) logDir(pod *corev1.Pod, container string) string {
	return filepath.Join(r.ClusterDir, "logs", "pods",
		pod.Namespace+"_"+pod.Name+"_"+string(pod.UID), container)
}
