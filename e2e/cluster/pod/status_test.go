package pod

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/utils/ptr"
)

func exited(code int32) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}
}

func TestPhase(t *testing.T) {
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	one := func(s corev1.ContainerStatus) []corev1.ContainerStatus { return []corev1.ContainerStatus{s} }
	cases := map[string]struct {
		observed observation
		want     corev1.PodPhase
	}{
		"not started":       {observation{containers: one(corev1.ContainerStatus{State: waiting})}, corev1.PodPending},
		"initializing":      {observation{init: one(corev1.ContainerStatus{State: running}), containers: one(corev1.ContainerStatus{State: waiting})}, corev1.PodPending},
		"running":           {observation{containers: one(corev1.ContainerStatus{State: running})}, corev1.PodRunning},
		"between restarts":  {observation{containers: one(corev1.ContainerStatus{State: waiting, LastTerminationState: exited(1)})}, corev1.PodRunning},
		"ended well":        {observation{finished: true, containers: one(corev1.ContainerStatus{State: exited(0)})}, corev1.PodSucceeded},
		"ended badly":       {observation{finished: true, containers: one(corev1.ContainerStatus{State: exited(2)})}, corev1.PodFailed},
		"initialized badly": {observation{finished: true, init: one(corev1.ContainerStatus{State: exited(2)}), containers: one(corev1.ContainerStatus{State: waiting})}, corev1.PodFailed},
	}
	for name, c := range cases {
		if got := phase(&corev1.Pod{}, c.observed); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestStatusKeepsTransitionTimesAndOthersConditions(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Generation: 3}}
	old := corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}}
	o := observation{containers: []corev1.ContainerStatus{{
		Name: "c", Ready: true, Started: ptr.To(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}}
	first := metav1.NewTime(time.Unix(100, 0))
	status := computeStatus(pod, old, o, first)
	if !podutil.IsPodReadyConditionTrue(status) {
		t.Fatalf("not ready: %+v", status.Conditions)
	}
	if _, scheduled := podutil.GetPodCondition(&status, corev1.PodScheduled); scheduled == nil {
		t.Error("the scheduler's condition is lost")
	}

	status = computeStatus(pod, status, o, metav1.NewTime(time.Unix(200, 0)))
	_, ready := podutil.GetPodCondition(&status, corev1.PodReady)
	if !ready.LastTransitionTime.Equal(&first) {
		t.Errorf("the transition time moved to %s although nothing changed", ready.LastTransitionTime)
	}
	o.containers[0].Ready = false
	status = computeStatus(pod, status, o, metav1.NewTime(time.Unix(300, 0)))
	_, ready = podutil.GetPodCondition(&status, corev1.PodReady)
	if ready.Status != corev1.ConditionFalse || ready.LastTransitionTime.Unix() != 300 || ready.ObservedGeneration != 3 {
		t.Errorf("unexpected condition %+v", ready)
	}
}

func TestReadinessThatOthersTookIsPublishedAgain(t *testing.T) {
	ready := func(status corev1.ConditionStatus) corev1.PodStatus {
		return corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}}
	}
	published := ready(corev1.ConditionTrue)
	if takeReadiness(&published, ready(corev1.ConditionTrue)) {
		t.Error("nothing differs")
	}
	if !takeReadiness(&published, ready(corev1.ConditionFalse)) {
		t.Error("somebody else took the readiness")
	}
	o := observation{containers: []corev1.ContainerStatus{{
		Name: "c", Ready: true, Started: ptr.To(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}}
	status := computeStatus(&corev1.Pod{}, published, o, metav1.NewTime(time.Unix(200, 0)))
	patch, err := statusPatch("uid", published, status)
	if err != nil || !strings.Contains(string(patch), `"status":"True","type":"Ready"`) {
		t.Errorf("the patch is %s, %v", patch, err)
	}
}
