// Package proc starts, finds and ends the operating system's processes that
// belong to a cluster or to one container of it.
package proc

import "path/filepath"

const (
	// ClusterVariable names the environment variable that every process of a
	// cluster carries; its value is the cluster's absolute folder.
	ClusterVariable = "LOCAL_CLUSTER_DIR"
	// ContainerVariable names the environment variable that every process of
	// a container carries; its value is "<pod UID>/<container name>". No
	// workload may have one of the same name: it would get this value.
	ContainerVariable = "LOCAL_CLUSTER_CONTAINER"
)

// ClusterMarker is the environment entry of the processes of the cluster in
// dir, which must be absolute.
func ClusterMarker(dir string) string {
	return ClusterVariable + "=" + filepath.Clean(dir)
}

// ContainerMarker is the environment entry of the processes of a container.
func ContainerMarker(podUID, container string) string {
	return ContainerVariable + "=" + podUID + "/" + container
}
