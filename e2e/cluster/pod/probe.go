package pod

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/events"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	tcpprobe "k8s.io/kubernetes/pkg/probe/tcp"
	"k8s.io/utils/ptr"
)

// failedProbe is why a container has to be restarted.
type failedProbe struct {
	kind  probeKind
	probe *corev1.Probe
}

// probe starts the probes of a running container, which end with ctx. The
// channel yields when the container has to be restarted.
func (c *container) probe(ctx context.Context, p *process) <-chan failedProbe {
	spec := c.spec()
	unhealthy := make(chan failedProbe, 2)
	begin := func() { c.begin(ctx, p, spec, unhealthy) }
	if spec.StartupProbe == nil {
		begin()
		return unhealthy
	}
	go c.repeat(ctx, p, startup, spec.StartupProbe, false, func(healthy bool) (goOn bool) {
		if healthy {
			begin()
		} else {
			unhealthy <- failedProbe{startup, spec.StartupProbe}
		}
		return false
	})
	return unhealthy
}

// begin marks the container as started and runs the probes that wait for it.
func (c *container) begin(ctx context.Context, p *process, spec *corev1.Container, unhealthy chan<- failedProbe) {
	c.verdict(p, func(s *corev1.ContainerStatus) {
		s.Started = ptr.To(true)
		s.Ready = spec.ReadinessProbe == nil
	})
	select {
	case <-c.started:
	default:
		close(c.started)
	}
	if spec.LivenessProbe != nil {
		go c.repeat(ctx, p, liveness, spec.LivenessProbe, true, func(healthy bool) (goOn bool) {
			if !healthy {
				unhealthy <- failedProbe{liveness, spec.LivenessProbe}
			}
			return healthy
		})
	}
	if spec.ReadinessProbe != nil {
		go c.repeat(ctx, p, readiness, spec.ReadinessProbe, false, func(healthy bool) (goOn bool) {
			c.verdict(p, func(s *corev1.ContainerStatus) { s.Ready = healthy })
			return true
		})
	}
}

// verdict records what a probe found out, unless the process has ended since.
func (c *container) verdict(p *process, change func(*corev1.ContainerStatus)) {
	c.worker.mu.Lock()
	if c.current == p {
		change(&c.status)
	}
	c.worker.mu.Unlock()
	c.worker.changed()
}

// repeat runs a probe in its period and reports every verdict that a threshold
// confirms, until report or ctx ends it.
func (c *container) repeat(ctx context.Context, p *process, kind probeKind, spec *corev1.Probe, initial bool, report func(healthy bool) (goOn bool)) {
	select {
	case <-time.After(time.Until(p.startedAt.Add(seconds(spec.InitialDelaySeconds, 0)))):
	case <-ctx.Done():
		return
	}
	ticker := time.NewTicker(seconds(spec.PeriodSeconds, 10))
	defer ticker.Stop()
	state := newProbeState(spec, initial)
	for {
		// A stopping container is asked for its readiness only.
		if kind != readiness && c.stopped() {
			return
		}
		result, output := c.ask(ctx, p, spec)
		if ctx.Err() != nil {
			return
		}
		healthy := result == probe.Success || result == probe.Warning
		if !healthy {
			c.event(corev1.EventTypeWarning, events.ContainerUnhealthy, fmt.Sprintf("%s probe failed: %s", kind, output))
		}
		if state.observe(healthy) && !report(state.verdict) {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// ask runs a probe once.
func (c *container) ask(ctx context.Context, p *process, spec *corev1.Probe) (probe.Result, string) {
	timeout := seconds(spec.TimeoutSeconds, 1)
	result, output, err := c.askHandler(ctx, p, spec, timeout)
	if err != nil {
		return probe.Failure, err.Error()
	}
	return result, output
}

func (c *container) askHandler(ctx context.Context, p *process, spec *corev1.Probe, timeout time.Duration) (probe.Result, string, error) {
	podIP, own := c.worker.addresses.PodIP, c.spec()
	switch {
	case spec.HTTPGet != nil:
		request, err := httpprobe.NewRequestForHTTPGetAction(spec.HTTPGet, own, podIP, "probe")
		if err != nil {
			return probe.Unknown, "", err
		}
		return httpprobe.New(false).Probe(request.WithContext(ctx), timeout)
	case spec.TCPSocket != nil:
		port, err := probe.ResolveContainerPort(spec.TCPSocket.Port, own)
		if err != nil {
			return probe.Unknown, "", err
		}
		host := spec.TCPSocket.Host
		if host == "" {
			host = podIP
		}
		return tcpprobe.New().Probe(host, port, timeout)
	case spec.GRPC != nil:
		return grpcprobe.New().Probe(podIP, ptr.Deref(spec.GRPC.Service, ""), int(spec.GRPC.Port), timeout)
	case spec.Exec != nil:
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		output, err := c.exec(ctx, p, spec.Exec.Command)
		if err != nil {
			return probe.Failure, fmt.Sprintf("%s%v", output, err), nil
		}
		return probe.Success, string(output), nil
	}
	return probe.Unknown, "", fmt.Errorf("the probe has no handler")
}
