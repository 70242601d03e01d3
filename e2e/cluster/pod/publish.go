package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/klog/v2"
)

// publishLoop shows the API server every change of the status at once.
func (w *Worker) publishLoop(ctx context.Context) {
	for {
		select {
		case <-w.dirty:
		case <-ctx.Done():
			return
		}
		if err := w.publish(ctx); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Publishing a pod's status", "pod", w.description())
			select {
			case <-time.After(retryInterval):
				w.changed()
			case <-ctx.Done():
				return
			}
		}
	}
}

// publish patches the status of the pod's object if it has changed. Only what
// has changed is in the patch, so that what others write is left alone.
func (w *Worker) publish(ctx context.Context) error {
	w.publishing.Lock()
	defer w.publishing.Unlock()
	pod := w.Pod()
	status := w.currentStatus(w.published)
	if equality.Semantic.DeepEqual(status, w.published) {
		return nil
	}
	patch, err := statusPatch(pod.UID, w.published, status)
	if err != nil {
		return err
	}
	_, err = w.runtime.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("patching the status of pod %s: %w", w.description(), err)
	}
	w.published = status // or the pod has gone, and nobody needs its status
	return nil
}

// Reconcile has the readiness published again if the API server has another one: the
// node lifecycle controller takes it from all pods of a node that was silent for a while.
func (w *Worker) Reconcile(seen corev1.PodStatus) {
	w.publishing.Lock()
	differs := takeReadiness(&w.published, seen)
	w.publishing.Unlock()
	if differs {
		w.changed()
	}
}

// takeReadiness puts the readiness that was seen into a status, and tells whether it differed.
func takeReadiness(status *corev1.PodStatus, seen corev1.PodStatus) bool {
	differs := false
	for _, condition := range seen.Conditions {
		if condition.Type != corev1.PodReady && condition.Type != corev1.ContainersReady {
			continue
		}
		for i := range status.Conditions {
			if own := &status.Conditions[i]; own.Type == condition.Type && own.Status != condition.Status {
				*own, differs = condition, true
			}
		}
	}
	return differs
}

// statusPatch leads from one status to another on the object with the UID.
func statusPatch(uid types.UID, from, to corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: from})
	if err != nil {
		return nil, fmt.Errorf("encoding the old status: %w", err)
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: to})
	if err != nil {
		return nil, fmt.Errorf("encoding the new status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("computing the status patch: %w", err)
	}
	return patch, nil
}

// Status is the pod's status at this moment.
func (w *Worker) Status() corev1.PodStatus {
	w.publishing.Lock()
	defer w.publishing.Unlock()
	return w.currentStatus(w.published)
}

func (w *Worker) currentStatus(old corev1.PodStatus) corev1.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := observation{addresses: w.addresses, startTime: w.startTime, finished: w.finished}
	for i, c := range w.containers {
		if i < w.inits {
			o.init = append(o.init, *c.status.DeepCopy())
		} else {
			o.containers = append(o.containers, *c.status.DeepCopy())
		}
	}
	return computeStatus(w.pod, old, o, metav1.NewTime(time.Now()))
}
