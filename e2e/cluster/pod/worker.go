package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/kubelet/events"
	"k8s.io/utils/ptr"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/podinfo"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/volumes"
)

// volumeInterval is how often volumes are brought up to date without a reason,
// for tokens expire.
const volumeInterval = 30 * time.Second

// Worker runs one pod from its binding to its removal.
type Worker struct {
	runtime   *Runtime
	addresses podinfo.Addresses
	startTime metav1.Time

	containers []*container // the init containers first
	inits      int

	stopping    chan struct{} // closed when the pod has to end
	stopSidecar chan struct{} // closed when only sidecars are left
	refresh     chan struct{} // asks for an update of the volumes
	dirty       chan struct{} // asks for an update of the status
	done        chan struct{} // closed when nothing is left of the pod

	publishing sync.Mutex
	published  corev1.PodStatus // guarded by publishing

	mu       sync.Mutex
	pod      *corev1.Pod
	limit    *deadline // set when stopping is closed
	remove   bool      // the object has to be removed in the end
	finished bool
}

// NewWorker prepares a pod; Run runs it.
func NewWorker(runtime *Runtime, pod *corev1.Pod, podIP string) *Worker {
	w := &Worker{
		runtime:     runtime,
		addresses:   podinfo.Addresses{PodIP: podIP, HostIP: runtime.HostIP},
		startTime:   metav1.Now(),
		stopping:    make(chan struct{}),
		stopSidecar: make(chan struct{}),
		refresh:     make(chan struct{}, 1),
		dirty:       make(chan struct{}, 1),
		done:        make(chan struct{}),
		published:   *pod.Status.DeepCopy(),
		pod:         pod,
		inits:       len(pod.Spec.InitContainers),
	}
	waiting := "ContainerCreating"
	if w.inits > 0 {
		waiting = "PodInitializing"
	}
	for i := range pod.Spec.InitContainers {
		spec := &pod.Spec.InitContainers[i]
		if podutil.IsRestartableInitContainer(spec) {
			w.containers = append(w.containers, newContainer(w, spec, corev1.RestartPolicyAlways, w.stopSidecar, waiting))
			continue
		}
		policy := pod.Spec.RestartPolicy
		if policy == corev1.RestartPolicyAlways {
			policy = corev1.RestartPolicyOnFailure
		}
		w.containers = append(w.containers, newContainer(w, spec, policy, w.stopping, waiting))
	}
	for i := range pod.Spec.Containers {
		w.containers = append(w.containers, newContainer(w, &pod.Spec.Containers[i], pod.Spec.RestartPolicy, w.stopping, waiting))
	}
	return w
}

// Run runs the pod and returns when it has been stopped and nothing is left of
// it. Until then ctx must stay valid; Stop is the way to end a pod.
func (w *Worker) Run(ctx context.Context) {
	defer close(w.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var loops sync.WaitGroup
	loops.Go(func() { w.publishLoop(ctx) })
	w.changed()
	if w.setUpVolumes(ctx) {
		loops.Go(func() { w.volumeLoop(ctx) })
		w.runContainers(ctx)
	}
	w.mu.Lock()
	w.finished = true
	w.mu.Unlock()
	w.changed()
	<-w.stopping
	if w.removalWanted() {
		w.removeObject(ctx)
	}
	cancel()
	loops.Wait()
	w.runtime.Volumes.Forget(w.Pod())
	if err := os.RemoveAll(w.runtime.podDir(w.Pod())); err != nil {
		klog.ErrorS(err, "Removing a pod's folder", "pod", w.description())
	}
}

// runContainers runs the init containers one after another, then the others
// together, and ends the sidecars.
func (w *Worker) runContainers(ctx context.Context) {
	var sidecars, regular sync.WaitGroup
	initialized := true
	for _, c := range w.containers[:w.inits] {
		if c.stop != w.stopSidecar {
			initialized = c.run(ctx)
		} else {
			sidecars.Go(func() { c.run(ctx) })
			select {
			case <-c.started:
			case <-w.stopping:
			}
		}
		if !initialized || w.stopped() {
			break
		}
	}
	if initialized && !w.stopped() {
		for _, c := range w.containers[w.inits:] {
			regular.Go(func() { c.run(ctx) })
		}
	}
	regular.Wait()
	close(w.stopSidecar)
	sidecars.Wait()
}

// Stop ends the pod within the grace period; a later call can shorten it. If
// remove is true the pod's object is removed in the end.
func (w *Worker) Stop(grace time.Duration, remove bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove = w.remove || remove
	if w.limit != nil {
		w.limit.shorten(grace)
		return
	}
	w.limit = newDeadline(grace)
	close(w.stopping)
}

// deadline is when containers that are being stopped have to be gone.
func (w *Worker) deadline() *deadline {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.limit != nil {
		return w.limit
	}
	grace := ptr.Deref(w.pod.Spec.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	return newDeadline(time.Duration(grace) * time.Second)
}

// Done is closed when nothing is left of the pod.
func (w *Worker) Done() <-chan struct{} { return w.done }

// Pod is the pod as the API server knows it. It must not be changed.
func (w *Worker) Pod() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// Update takes in a new version of the pod.
func (w *Worker) Update(pod *corev1.Pod) {
	w.mu.Lock()
	w.pod = pod
	w.mu.Unlock()
	w.RefreshVolumes()
	w.changed()
}

// PodIP is the pod's address.
func (w *Worker) PodIP() string { return w.addresses.PodIP }

// RefreshVolumes has the volumes brought up to date soon.
func (w *Worker) RefreshVolumes() { poke(w.refresh) }

func (w *Worker) changed() { poke(w.dirty) }

func poke(channel chan<- struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}

func (w *Worker) stopped() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

func (w *Worker) removalWanted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.remove
}

func (w *Worker) isInit(name string) bool {
	return slices.ContainsFunc(w.containers[:w.inits], func(c *container) bool { return c.name == name })
}

func (w *Worker) description() string {
	pod := w.Pod()
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

func (w *Worker) volumePod() volumes.Pod {
	return volumes.Pod{Pod: w.Pod(), Addresses: w.addresses, Dir: filepath.Join(w.runtime.podDir(w.Pod()), "volumes")}
}

// setUpVolumes writes the volumes for the first time and reports whether the
// pod may start then.
func (w *Worker) setUpVolumes(ctx context.Context) bool {
	for last := ""; ; {
		err := w.runtime.Volumes.Write(ctx, w.volumePod())
		if err == nil {
			return !w.stopped()
		}
		if err.Error() != last {
			last = err.Error()
			w.event("", corev1.EventTypeWarning, events.FailedMountVolume, last)
		}
		select {
		case <-time.After(retryInterval):
		case <-w.refresh:
		case <-w.stopping:
			return false
		}
	}
}

// volumeLoop keeps the volumes up to date.
func (w *Worker) volumeLoop(ctx context.Context) {
	ticker := time.NewTicker(volumeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-w.refresh:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if err := w.runtime.Volumes.Write(ctx, w.volumePod()); err != nil && ctx.Err() == nil {
			w.event("", corev1.EventTypeWarning, events.FailedMountVolume, err.Error())
		}
	}
}

// removeObject shows the API server how the pod ended and finishes its
// deletion.
func (w *Worker) removeObject(ctx context.Context) {
	for {
		err := w.publish(ctx)
		if err == nil {
			pod := w.Pod()
			options := metav1.NewDeleteOptions(0)
			options.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
			err = w.runtime.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *options)
		}
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		if errors.Is(err, context.Canceled) {
			return
		}
		klog.ErrorS(err, "Finishing a pod's deletion", "pod", w.description())
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return
		}
	}
}
