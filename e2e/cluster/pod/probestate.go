package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// probeKind is what a probe is asked for.
type probeKind string

const (
	startup   probeKind = "Startup"
	liveness  probeKind = "Liveness"
	readiness probeKind = "Readiness"
)

// probeState turns the results of a probe into a verdict, which changes only
// after as many equal results in a row as the probe's thresholds ask for.
type probeState struct {
	needed  map[bool]int
	verdict bool
	last    bool
	streak  int
}

func newProbeState(probe *corev1.Probe, verdict bool) *probeState {
	return &probeState{
		needed: map[bool]int{
			true:  max(int(probe.SuccessThreshold), 1),
			false: max(int(probe.FailureThreshold), 1),
		},
		verdict: verdict,
	}
}

// observe takes in one result; reached tells that this result's threshold has
// been reached, and the verdict with it.
func (s *probeState) observe(success bool) (reached bool) {
	if s.streak > 0 && s.last == success {
		s.streak++
	} else {
		s.last, s.streak = success, 1
	}
	if s.streak < s.needed[success] {
		return false
	}
	s.verdict = success
	return true
}

// seconds converts a field of a probe, with a default for its zero value.
func seconds(value, otherwise int32) time.Duration {
	if value == 0 {
		value = otherwise
	}
	return time.Duration(value) * time.Second
}
