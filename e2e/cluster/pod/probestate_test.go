package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestProbeStateChangesAtItsThresholds(t *testing.T) {
	state := newProbeState(&corev1.Probe{SuccessThreshold: 2, FailureThreshold: 3}, false)
	steps := []struct{ result, reached, verdict bool }{
		{true, false, false},
		{false, false, false}, // A failure begins the count anew.
		{true, false, false},
		{true, true, true},
		{false, false, true},
		{false, false, true},
		{true, false, true},
		{false, false, true},
		{false, false, true},
		{false, true, false},
		{false, true, false},
	}
	for i, step := range steps {
		if reached := state.observe(step.result); reached != step.reached || state.verdict != step.verdict {
			t.Errorf("step %d: reached %t, verdict %t, want %t, %t", i, reached, state.verdict, step.reached, step.verdict)
		}
	}
}

func TestProbeStateDefaultsToOneResult(t *testing.T) {
	state := newProbeState(&corev1.Probe{}, true)
	if !state.observe(false) || state.verdict {
		t.Error("one failure does not count without a threshold")
	}
}
