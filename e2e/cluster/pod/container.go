package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/kubelet/events"
	"k8s.io/utils/ptr"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/image"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/sandbox"
)

// retryInterval is the pause before a container that cannot be created yet is
// tried again.
const retryInterval = time.Second

// container runs one container of a pod, again and again as its restart policy
// asks for.
type container struct {
	worker *Worker
	name   string
	policy corev1.RestartPolicy
	// stop ends the container for good when it is closed.
	stop <-chan struct{}
	// started is closed when a run has passed its startup probe first.
	started chan struct{}
	backoff backoff

	// The worker's mutex guards these.
	status  corev1.ContainerStatus
	current *process
}

func newContainer(w *Worker, spec *corev1.Container, policy corev1.RestartPolicy, stop <-chan struct{}, reason string) *container {
	return &container{
		worker: w, name: spec.Name, policy: policy, stop: stop, started: make(chan struct{}),
		status: corev1.ContainerStatus{
			Name: spec.Name, Image: spec.Image, Started: ptr.To(false),
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}},
		},
	}
}

// run runs the container until its restart policy or the pod's end stops it
// and tells whether its last run succeeded.
func (c *container) run(ctx context.Context) bool {
	for {
		exit, ok := c.attempt(ctx)
		if !ok {
			return false
		}
		succeeded := exit.ExitCode == 0
		if c.stopped() || c.policy == corev1.RestartPolicyNever || c.policy == corev1.RestartPolicyOnFailure && succeeded {
			return succeeded
		}
		delay := c.backoff.next(exit.FinishedAt.Sub(exit.StartedAt.Time))
		if delay > 0 {
			message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, c.name, c.worker.description())
			c.event(corev1.EventTypeWarning, events.BackOffStartContainer, "Back-off restarting failed container "+c.name+" in pod "+c.worker.description())
			c.update(func(s *corev1.ContainerStatus) {
				s.LastTerminationState = corev1.ContainerState{Terminated: exit}
				s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: message}}
			})
			if !c.sleep(delay) {
				c.update(func(s *corev1.ContainerStatus) { s.State = s.LastTerminationState })
				return succeeded
			}
		}
		c.update(func(s *corev1.ContainerStatus) {
			s.LastTerminationState = corev1.ContainerState{Terminated: exit}
			s.RestartCount++
		})
	}
}

// attempt runs the container once; ok is false when the pod ended before.
func (c *container) attempt(ctx context.Context) (exit *corev1.ContainerStateTerminated, ok bool) {
	for {
		p, err := c.create(ctx)
		if err == nil {
			return c.supervise(ctx, p), true
		}
		if failure := new(sandbox.StartError); errors.As(err, &failure) {
			c.event(corev1.EventTypeWarning, events.FailedToStartContainer, "Error: "+failure.Reason)
			now := metav1.Now()
			return c.terminated(&corev1.ContainerStateTerminated{
				ExitCode: 128, Reason: "StartError", Message: failure.Reason, StartedAt: now, FinishedAt: now,
			}), true
		}
		reason := "CreateContainerConfigError"
		if unknown := new(image.UnknownError); errors.As(err, &unknown) {
			reason = "ErrImagePull"
		}
		c.wait(reason, err)
		if !c.sleep(retryInterval) {
			return nil, false
		}
	}
}

// wait shows why the container cannot be created.
func (c *container) wait(reason string, err error) {
	changed := false
	c.update(func(s *corev1.ContainerStatus) {
		waiting := &corev1.ContainerStateWaiting{Reason: reason, Message: err.Error()}
		changed = s.State.Waiting == nil || *s.State.Waiting != *waiting
		s.State = corev1.ContainerState{Waiting: waiting}
	})
	if changed {
		c.event(corev1.EventTypeWarning, events.FailedToCreateContainer, "Error: "+err.Error())
	}
}

// create starts the container's process.
func (c *container) create(ctx context.Context) (*process, error) {
	if c.stopped() {
		return nil, context.Canceled
	}
	w, rt := c.worker, c.worker.runtime
	pod, spec := w.Pod(), c.spec()
	found, err := rt.Images.Lookup(spec.Image)
	if err != nil {
		return nil, err
	}
	declared, err := rt.environment(ctx, pod, spec, w.addresses)
	if err != nil {
		return nil, err
	}
	mounts, err := w.volumePod().Mounts(spec, declared)
	if err != nil {
		return nil, err
	}
	expanded := expandCommand(spec, declared)
	line, err := found.CommandLine(expanded)
	if err != nil {
		return nil, err
	}
	attempt := int(c.snapshot().RestartCount)
	c.event(corev1.EventTypeNormal, events.PulledImage, fmt.Sprintf("Container image %q already present on machine", spec.Image))
	log, err := createLog(rt.logDir(pod, c.name), attempt)
	if err != nil {
		return nil, err
	}
	marker := proc.ContainerMarker(string(pod.UID), c.name)
	p, err := startProcess(rt.Spawner, sandbox.Spec{
		Root:    filepath.Join(rt.podDir(pod), "sandbox", c.name),
		Mounts:  mounts,
		Workdir: found.WorkingDir(spec),
		Command: line,
		Env: entries(map[string]string{
			"PATH":     "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME":     "/root",
			"HOSTNAME": pod.Name,
		}, found.Env, declared, map[string]string{
			proc.ClusterVariable:   rt.ClusterDir,
			proc.ContainerVariable: string(pod.UID) + "/" + c.name,
		}),
	}, marker, log)
	if err != nil {
		return nil, errors.Join(err, log.close())
	}
	c.event(corev1.EventTypeNormal, events.CreatedContainer, "Created container: "+c.name)
	return p, nil
}

// supervise sees a started process to its end.
func (c *container) supervise(ctx context.Context, p *process) *corev1.ContainerStateTerminated {
	spec := c.spec()
	c.worker.mu.Lock()
	c.current = p
	c.status.ContainerID = "process://" + strconv.Itoa(p.pid())
	c.status.ImageID = "map://" + spec.Image
	c.status.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(p.startedAt)}}
	c.status.Started = ptr.To(false)
	c.status.Ready = false
	c.worker.mu.Unlock()
	c.event(corev1.EventTypeNormal, events.StartedContainer, "Started container "+c.name)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if hook := spec.Lifecycle; hook != nil && hook.PostStart != nil {
		c.hook(ctx, p, "PostStartHook", hook.PostStart)
	}
	unhealthy := c.probe(ctx, p)
	c.worker.changed()
	select {
	case <-p.exited:
	case <-c.stop:
		c.kill(ctx, p, c.worker.deadline(), "Stopping container "+c.name)
	case failed := <-unhealthy:
		grace := ptr.Deref(c.worker.Pod().Spec.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
		grace = ptr.Deref(failed.probe.TerminationGracePeriodSeconds, grace)
		c.kill(ctx, p, newDeadline(time.Duration(grace)*time.Second),
			fmt.Sprintf("Container %s failed %s probe, will be restarted", c.name, failed.kind))
	}
	<-p.exited
	cancel()
	reason := "Completed"
	if p.exitCode != 0 {
		reason = "Error"
	}
	return c.terminated(&corev1.ContainerStateTerminated{
		ExitCode: int32(p.exitCode), Reason: reason, ContainerID: "process://" + strconv.Itoa(p.pid()),
		StartedAt: metav1.NewTime(p.startedAt), FinishedAt: metav1.NewTime(p.finishedAt),
	})
}

// terminated records the end of a run.
func (c *container) terminated(exit *corev1.ContainerStateTerminated) *corev1.ContainerStateTerminated {
	init := c.policy != corev1.RestartPolicyAlways && c.worker.isInit(c.name)
	c.worker.mu.Lock()
	c.current = nil
	c.worker.mu.Unlock()
	c.update(func(s *corev1.ContainerStatus) {
		s.State = corev1.ContainerState{Terminated: exit}
		s.Ready = init && exit.ExitCode == 0
		s.Started = ptr.To(false)
	})
	return exit
}

// update changes the container's status and has it published.
func (c *container) update(change func(*corev1.ContainerStatus)) {
	c.worker.mu.Lock()
	change(&c.status)
	c.worker.mu.Unlock()
	c.worker.changed()
}

// snapshot is a copy of the container's status.
func (c *container) snapshot() corev1.ContainerStatus {
	c.worker.mu.Lock()
	defer c.worker.mu.Unlock()
	return *c.status.DeepCopy()
}

func (c *container) spec() *corev1.Container { return findContainer(c.worker.Pod(), c.name) }

func (c *container) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// sleep waits and tells whether the container may go on afterwards.
func (c *container) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.stop:
		return false
	}
}
