// Package volumes writes the volumes of pods into folders, the way a kubelet
// does, and keeps them up to date.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/kubelet/token"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/podinfo"
)

// Manager writes volumes from the objects of one cluster.
type Manager struct {
	client      kubernetes.Interface
	tokens      *token.Manager
	allocatable corev1.ResourceList
}

// NewManager makes a manager that reads objects and requests tokens through
// client.
func NewManager(client kubernetes.Interface, allocatable corev1.ResourceList) *Manager {
	return &Manager{client: client, tokens: token.NewManager(client), allocatable: allocatable}
}

// Pod is a pod whose volumes live in a folder.
type Pod struct {
	*corev1.Pod
	Addresses podinfo.Addresses
	// Dir is the folder that holds a folder for each volume.
	Dir string
}

// Path is where a volume of the pod lives on the machine.
func (p Pod) Path(volume *corev1.Volume) string {
	if volume.HostPath != nil {
		return volume.HostPath.Path
	}
	return filepath.Join(p.Dir, volume.Name)
}

// Write creates the pod's volumes, or brings them up to date. Every volume is
// tried; the errors name those that failed.
func (m *Manager) Write(ctx context.Context, pod Pod) error {
	var failures []error
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		if err := m.write(ctx, pod, volume); err != nil {
			failures = append(failures, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", volume.Name, err))
		}
	}
	return errors.Join(failures...)
}

// Forget drops what is remembered for a pod that has gone.
func (m *Manager) Forget(pod *corev1.Pod) {
	m.tokens.DeleteServiceAccountToken(pod.UID)
}

func (m *Manager) write(ctx context.Context, pod Pod, volume *corev1.Volume) error {
	dir := pod.Path(volume)
	switch {
	case volume.HostPath != nil:
		return nil
	case volume.EmptyDir != nil:
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		return os.Chmod(dir, 0o777)
	}
	payload, err := m.payload(ctx, pod, volume)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	writer, err := volumeutil.NewAtomicWriter(dir, "volume "+volume.Name)
	if err != nil {
		return err
	}
	return writer.Write(payload, nil)
}
