package pod

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// expandCommand replaces the $(VARIABLES) in a container's command and
// arguments.
func expandCommand(container *corev1.Container, environment map[string]string) *corev1.Container {
	mapping := expansion.MappingFuncFor(environment)
	expand := func(words []string) []string {
		expanded := make([]string, 0, len(words))
		for _, word := range words {
			expanded = append(expanded, expansion.Expand(word, mapping))
		}
		return expanded
	}
	return &corev1.Container{Name: container.Name, Command: expand(container.Command), Args: expand(container.Args)}
}

// findContainer finds a container or init container by its name.
func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	return nil
}
