package node

import (
	"context"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/pod"
)

// provider is what virtual-kubelet's pod controller drives: it keeps a worker
// for each pod of the node.
type provider struct {
	runtime   *pod.Runtime
	addresses *addressPool
	// background outlives the controller's contexts; the workers run in it.
	background context.Context
	nodeCPU    cpuSum

	mu      sync.Mutex
	workers map[types.NamespacedName]*pod.Worker
	closed  bool
}

func newProvider(ctx context.Context, runtime *pod.Runtime, addresses *addressPool) *provider {
	return &provider{
		runtime: runtime, addresses: addresses, background: ctx,
		workers: make(map[types.NamespacedName]*pod.Worker),
	}
}

// NotifyPods makes the provider an asynchronous one, whose pods are not polled.
// The workers publish the status themselves: the controller would write the
// whole object, with labels and annotations that may be out of date, and could
// not tell when the last status has arrived.
func (p *provider) NotifyPods(context.Context, func(*corev1.Pod)) {}

// CreatePod starts a pod.
func (p *provider) CreatePod(ctx context.Context, object *corev1.Pod) error {
	if err := p.awaitPredecessor(ctx, object); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errdefs.InvalidInput("the node is stopping")
	}
	address, err := p.address(object)
	if err != nil {
		return err
	}
	worker := pod.NewWorker(p.runtime, object, address)
	p.workers[key(object)] = worker
	go func() {
		worker.Run(p.background)
		p.forget(worker)
	}()
	return nil
}

// awaitPredecessor waits for an older pod of the same name to be gone.
func (p *provider) awaitPredecessor(ctx context.Context, object *corev1.Pod) error {
	for {
		worker := p.worker(object.Namespace, object.Name)
		if worker == nil || worker.Pod().UID == object.UID {
			return nil
		}
		worker.Stop(0, true)
		select {
		case <-worker.Done():
			p.forget(worker)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *provider) address(object *corev1.Pod) (string, error) {
	if object.Spec.HostNetwork {
		return p.runtime.HostIP, nil
	}
	return p.addresses.take()
}

// forget drops a worker that is done; doing so twice does no harm.
func (p *provider) forget(worker *pod.Worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := key(worker.Pod())
	if p.workers[name] == worker {
		delete(p.workers, name)
		p.addresses.release(worker.PodIP())
	}
}

// UpdatePod takes in a new version of a pod, or a new pod of the same name.
func (p *provider) UpdatePod(ctx context.Context, object *corev1.Pod) error {
	worker := p.worker(object.Namespace, object.Name)
	if worker == nil || worker.Pod().UID != object.UID {
		return p.CreatePod(ctx, object)
	}
	worker.Update(object)
	return nil
}

// DeletePod begins to stop a pod; its worker removes the object in the end.
func (p *provider) DeletePod(_ context.Context, object *corev1.Pod) error {
	worker := p.worker(object.Namespace, object.Name)
	if worker == nil || worker.Pod().UID != object.UID {
		return errdefs.NotFoundf("pod %s is not on this node", key(object))
	}
	grace := ptr.Deref(object.DeletionGracePeriodSeconds, 0)
	worker.Stop(time.Duration(grace)*time.Second, true)
	return nil
}

// GetPod is the pod as the node knows it.
func (p *provider) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	worker := p.worker(namespace, name)
	if worker == nil {
		return nil, errdefs.NotFoundf("pod %s/%s is not on this node", namespace, name)
	}
	return snapshot(worker), nil
}

// GetPodStatus is the status of a pod at this moment.
func (p *provider) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	object, err := p.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &object.Status, nil
}

// GetPods lists the node's pods.
func (p *provider) GetPods(context.Context) ([]*corev1.Pod, error) {
	var pods []*corev1.Pod
	for _, worker := range p.all() {
		pods = append(pods, snapshot(worker))
	}
	return pods, nil
}

func snapshot(worker *pod.Worker) *corev1.Pod {
	object := worker.Pod().DeepCopy()
	object.Status = worker.Status()
	return object
}

func (p *provider) worker(namespace, name string) *pod.Worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers[types.NamespacedName{Namespace: namespace, Name: name}]
}

func (p *provider) all() []*pod.Worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	workers := make([]*pod.Worker, 0, len(p.workers))
	for _, worker := range p.workers {
		workers = append(workers, worker)
	}
	return workers
}

// shutdown ends all pods' processes and leaves their objects alone.
func (p *provider) shutdown() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	workers := p.all()
	for _, worker := range workers {
		worker.Shutdown()
	}
	for _, worker := range workers {
		<-worker.Done()
	}
}

func key(object *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: object.Namespace, Name: object.Name}
}
