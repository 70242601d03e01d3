package pod

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/podinfo"
)

// observation is what the node knows about a pod.
type observation struct {
	addresses  podinfo.Addresses
	startTime  metav1.Time
	init       []corev1.ContainerStatus
	containers []corev1.ContainerStatus
	// finished: no container will be started again.
	finished bool
}

// computeStatus derives a pod's status from what was observed. What others
// have written into old, like the scheduler's condition, is kept.
func computeStatus(pod *corev1.Pod, old corev1.PodStatus, o observation, now metav1.Time) corev1.PodStatus {
	status := *old.DeepCopy()
	status.ObservedGeneration = pod.Generation
	status.Phase = phase(pod, o)
	status.HostIP = o.addresses.HostIP
	status.HostIPs = []corev1.HostIP{{IP: o.addresses.HostIP}}
	status.PodIP = o.addresses.PodIP
	status.PodIPs = []corev1.PodIP{{IP: o.addresses.PodIP}}
	status.StartTime = &o.startTime
	status.InitContainerStatuses = o.init
	status.ContainerStatuses = o.containers
	for _, condition := range conditions(pod, status, o) {
		condition.LastTransitionTime = now
		setCondition(&status, condition)
	}
	return status
}

// phase summarizes the containers as the kubelet's getPhase does.
func phase(pod *corev1.Pod, o observation) corev1.PodPhase {
	var waiting, running, failed int
	for _, s := range o.containers {
		switch {
		case s.State.Running != nil:
			running++
		case s.State.Terminated != nil:
			if s.State.Terminated.ExitCode != 0 {
				failed++
			}
		case s.LastTerminationState.Terminated == nil:
			waiting++
		}
	}
	initFailed := slices.ContainsFunc(o.init, func(s corev1.ContainerStatus) bool {
		return s.State.Terminated != nil && s.State.Terminated.ExitCode != 0 && !sidecarNamed(pod, s.Name)
	})
	switch {
	case o.finished && (failed > 0 || initFailed || waiting > 0):
		return corev1.PodFailed
	case o.finished:
		return corev1.PodSucceeded
	case waiting > 0 && running == 0, !initialized(pod, o):
		return corev1.PodPending
	case waiting > 0:
		return corev1.PodPending
	}
	return corev1.PodRunning
}

// initialized tells whether all init containers have done their part.
func initialized(pod *corev1.Pod, o observation) bool {
	started := slices.ContainsFunc(o.containers, func(s corev1.ContainerStatus) bool {
		return s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil
	})
	return started || len(uninitialized(pod, o)) == 0
}

func uninitialized(pod *corev1.Pod, o observation) []string {
	var names []string
	for _, s := range o.init {
		done := s.Ready
		if sidecarNamed(pod, s.Name) {
			done = s.Started != nil && *s.Started
		}
		if !done {
			names = append(names, s.Name)
		}
	}
	return names
}

func sidecarNamed(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && podutil.IsRestartableInitContainer(&c)
	})
}

// conditions are the pod conditions that a node decides.
func conditions(pod *corev1.Pod, status corev1.PodStatus, o observation) []corev1.PodCondition {
	containersReady := containersReady(pod, status, o)
	ready := containersReady
	ready.Type = corev1.PodReady
	if ready.Status == corev1.ConditionTrue {
		for _, gate := range pod.Spec.ReadinessGates {
			_, condition := podutil.GetPodConditionFromList(status.Conditions, gate.ConditionType)
			if condition == nil || condition.Status != corev1.ConditionTrue {
				ready.Status, ready.Reason = corev1.ConditionFalse, "ReadinessGatesNotReady"
				ready.Message = fmt.Sprintf("the status of pod readiness gate %q is not \"True\"", gate.ConditionType)
			}
		}
	}
	result := []corev1.PodCondition{
		{Type: corev1.PodReadyToStartContainers, Status: truth(!o.finished)},
		{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
		ready,
		containersReady,
	}
	if !initialized(pod, o) {
		result[1].Status, result[1].Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		result[1].Message = fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(uninitialized(pod, o), " "))
	}
	for i := range result {
		result[i].ObservedGeneration = pod.Generation
	}
	return result
}

func containersReady(pod *corev1.Pod, status corev1.PodStatus, o observation) corev1.PodCondition {
	condition := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionFalse}
	switch status.Phase {
	case corev1.PodFailed:
		condition.Reason = "PodFailed"
		return condition
	case corev1.PodSucceeded:
		condition.Reason = "PodCompleted"
		return condition
	}
	var unready []string
	for _, s := range o.init {
		if !s.Ready && sidecarNamed(pod, s.Name) {
			unready = append(unready, s.Name)
		}
	}
	for _, s := range o.containers {
		if !s.Ready {
			unready = append(unready, s.Name)
		}
	}
	if len(unready) > 0 {
		condition.Reason = "ContainersNotReady"
		condition.Message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
		return condition
	}
	condition.Status = corev1.ConditionTrue
	return condition
}

func truth(value bool) corev1.ConditionStatus {
	if value {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

// setCondition replaces a condition; its transition time is kept unless the
// status flips.
func setCondition(status *corev1.PodStatus, condition corev1.PodCondition) {
	i, old := podutil.GetPodConditionFromList(status.Conditions, condition.Type)
	if old == nil {
		status.Conditions = append(status.Conditions, condition)
		return
	}
	if old.Status == condition.Status {
		condition.LastTransitionTime = old.LastTransitionTime
	}
	status.Conditions[i] = condition
}
