package pod

import (
	corev1 "k8s.io/api/core/v1"
)

// event records an event about the container.
func (c *container) event(kind, reason, message string) {
	field := "spec.containers{" + c.name + "}"
	if c.worker.isInit(c.name) {
		field = "spec.initContainers{" + c.name + "}"
	}
	c.worker.event(field, kind, reason, message)
}

// event records an event about the pod or, if field is not empty, a part of it.
func (w *Worker) event(field, kind, reason, message string) {
	pod := w.Pod()
	w.runtime.Recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name,
		UID: pod.UID, ResourceVersion: pod.ResourceVersion, FieldPath: field,
	}, kind, reason, message)
}
