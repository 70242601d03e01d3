package pod

import (
	"fmt"
	"time"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

// Usage measures the pod's running containers among processes.
func (w *Worker) Usage(processes []proc.Process) []Usage {
	pod := w.Pod()
	var usages []Usage
	for _, c := range w.containers {
		w.mu.Lock()
		p := c.current
		w.mu.Unlock()
		if p == nil {
			continue
		}
		cpu, memory := p.measure(processes)
		usages = append(usages, Usage{
			Namespace: pod.Namespace, Pod: pod.Name, Container: c.name,
			StartedAt: p.startedAt, CPUSeconds: cpu, MemoryBytes: memory,
		})
	}
	return usages
}

// Log is the log file of a run of a container.
type Log struct {
	Path    string
	running func() bool
}

// Running tells whether the log can still grow.
func (l Log) Running() bool { return l.running() }

// Log finds the log of a container's last run, or of the one before.
func (w *Worker) Log(name string, previous bool) (Log, error) {
	for _, c := range w.containers {
		if c.name != name {
			continue
		}
		return c.log(previous)
	}
	return Log{}, fmt.Errorf("container %q is not in pod %q", name, w.Pod().Name)
}

func (c *container) log(previous bool) (Log, error) {
	status := c.snapshot()
	attempt := int(status.RestartCount)
	if previous {
		attempt--
	}
	if status.ContainerID == "" || attempt < 0 {
		kind := "container"
		if previous {
			kind = "previous terminated container"
		}
		return Log{}, fmt.Errorf("%s %q in pod %q not found", kind, c.name, c.worker.Pod().Name)
	}
	return Log{
		Path: logPath(c.worker.runtime.logDir(c.worker.Pod(), c.name), attempt),
		running: func() bool {
			c.worker.mu.Lock()
			defer c.worker.mu.Unlock()
			return c.current != nil && int(c.status.RestartCount) == attempt
		},
	}, nil
}

// shutdownGrace is what containers get when the node itself stops.
const shutdownGrace = 3 * time.Second

// Shutdown ends the pod's processes and leaves its object alone.
func (w *Worker) Shutdown() { w.Stop(shutdownGrace, false) }
