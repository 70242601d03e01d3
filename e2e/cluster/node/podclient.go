package node

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/utils/ptr"
)

// guardedPods is the client that the pod controller works with. The controller
// removes a pod's object when the grace period is over, or at once when it
// believes that nothing runs; here the object goes only after the processes
// have ended and the final status has been published.
type guardedPods struct {
	corev1client.PodsGetter
	provider *provider
}

// Pods is the client for a namespace.
func (g guardedPods) Pods(namespace string) corev1client.PodInterface {
	return guardedNamespace{PodInterface: g.PodsGetter.Pods(namespace), provider: g.provider, namespace: namespace}
}

type guardedNamespace struct {
	corev1client.PodInterface
	provider  *provider
	namespace string
}

// Delete removes a pod's object by way of its worker if it has one, with the
// grace that the pod was granted; the controller's own is always none.
func (g guardedNamespace) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	worker := g.provider.worker(g.namespace, name)
	if worker == nil {
		return g.PodInterface.Delete(ctx, name, options)
	}
	object, err := g.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if object.UID != worker.Pod().UID {
		return g.PodInterface.Delete(ctx, name, options)
	}
	worker.Stop(time.Duration(ptr.Deref(object.DeletionGracePeriodSeconds, 0))*time.Second, true)
	select {
	case <-worker.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
