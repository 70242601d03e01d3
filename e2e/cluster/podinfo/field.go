// Package podinfo reads what the downward API offers of a pod.
package podinfo

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resources "k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/apis/core/pods"
	"k8s.io/kubernetes/pkg/fieldpath"
)

// Addresses are the facts about a pod that its node decides.
type Addresses struct {
	PodIP  string
	HostIP string
}

// Field is the value of a field of the pod, as fieldRef selects it.
func Field(pod *corev1.Pod, ref *corev1.ObjectFieldSelector, addresses Addresses) (string, error) {
	version := ref.APIVersion
	if version == "" {
		version = "v1"
	}
	path, _, err := pods.ConvertDownwardAPIFieldLabel(version, ref.FieldPath, "")
	if err != nil {
		return "", fmt.Errorf("field %s: %w", ref.FieldPath, err)
	}
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return addresses.HostIP, nil
	case "status.podIP", "status.podIPs":
		return addresses.PodIP, nil
	}
	value, err := fieldpath.ExtractFieldPathAsString(pod, path)
	if err != nil {
		return "", fmt.Errorf("field %s: %w", ref.FieldPath, err)
	}
	return value, nil
}

// Resource is the value of a container's resource, as resourceFieldRef selects
// it; container is the default for the selector's own.
func Resource(pod *corev1.Pod, ref *corev1.ResourceFieldSelector, container string, allocatable corev1.ResourceList) (string, error) {
	if ref.ContainerName != "" {
		container = ref.ContainerName
	}
	value, err := resources.ExtractResourceValueByContainerNameAndNodeAllocatable(ref, pod, container, allocatable)
	if err != nil {
		return "", fmt.Errorf("resource %s: %w", ref.Resource, err)
	}
	return value, nil
}
