package pod

import (
	"context"
	"fmt"
	"net/http"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/events"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/sandbox"
)

// afterHook is the least time that a process gets after its preStop hook, even
// if that has used up the grace period.
const afterHook = 2 * time.Second

// kill ends a container: preStop hook, SIGTERM, and SIGKILL at the deadline.
func (c *container) kill(ctx context.Context, p *process, limit *deadline, message string) {
	c.event(corev1.EventTypeNormal, events.KillingContainer, message)
	least := time.Duration(0)
	if spec := c.spec(); spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
		hookCtx, cancel := limit.context(ctx)
		c.hook(hookCtx, p, "PreStopHook", spec.Lifecycle.PreStop)
		cancel()
		least = afterHook
	}
	p.signal(syscall.SIGTERM)
	earliest := time.NewTimer(least)
	defer earliest.Stop()
	select {
	case <-p.exited:
		return
	case <-limit.expired:
	}
	select {
	case <-p.exited:
		return
	case <-earliest.C:
	}
	p.kill()
}

// hook runs a lifecycle hook until it is done, the container has ended or ctx
// has.
func (c *container) hook(ctx context.Context, p *process, kind string, handler *corev1.LifecycleHandler) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := c.runHook(ctx, p, handler); err != nil && ctx.Err() == nil {
		c.event(corev1.EventTypeWarning, "Failed"+kind, fmt.Sprintf("%s failed: %v", kind, err))
	}
}

func (c *container) runHook(ctx context.Context, p *process, handler *corev1.LifecycleHandler) error {
	switch {
	case handler.Exec != nil:
		output, err := c.exec(ctx, p, handler.Exec.Command)
		if err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		return nil
	case handler.HTTPGet != nil:
		request, err := httpprobe.NewRequestForHTTPGetAction(handler.HTTPGet, c.spec(), c.worker.addresses.PodIP, "lifecycle")
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request.WithContext(ctx))
		if err != nil {
			return err
		}
		return response.Body.Close()
	case handler.Sleep != nil:
		select {
		case <-time.After(time.Duration(handler.Sleep.Seconds) * time.Second):
		case <-ctx.Done():
		}
	}
	return nil
}

// exec runs a command inside a running container.
func (c *container) exec(ctx context.Context, p *process, command []string) ([]byte, error) {
	return sandbox.Exec(ctx, p.pid(), sandbox.Spec{Command: command, Workdir: p.spec.Workdir, Env: p.spec.Env})
}
