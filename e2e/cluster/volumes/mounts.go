package volumes

import (
	"errors"
	"fmt"
	"os"

	securejoin "github.com/cyphar/filepath-securejoin"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/sandbox"
)

// Mounts says where a container sees the pod's volumes, which must have been
// written. The environment is what subPathExpr may refer to.
func (p Pod) Mounts(container *corev1.Container, environment map[string]string) ([]sandbox.Mount, error) {
	byName := make(map[string]*corev1.Volume, len(p.Spec.Volumes))
	for i := range p.Spec.Volumes {
		byName[p.Spec.Volumes[i].Name] = &p.Spec.Volumes[i]
	}
	mounts := make([]sandbox.Mount, 0, len(container.VolumeMounts))
	for _, m := range container.VolumeMounts {
		volume, ok := byName[m.Name]
		if !ok {
			return nil, fmt.Errorf("volume %q of mount %s does not exist", m.Name, m.MountPath)
		}
		subPath := m.SubPath
		if m.SubPathExpr != "" {
			subPath = expansion.Expand(m.SubPathExpr, expansion.MappingFuncFor(environment))
		}
		source := p.Path(volume)
		if subPath != "" {
			var err error
			if source, err = securejoin.SecureJoin(source, subPath); err != nil {
				return nil, fmt.Errorf("sub-path %s of volume %q: %w", subPath, m.Name, err)
			}
			if err := prepareSubPath(volume, source); err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, container.Name, err)
			}
		}
		mounts = append(mounts, sandbox.Mount{
			Source:   source,
			Target:   m.MountPath,
			ReadOnly: m.ReadOnly || madeFromObjects(volume),
		})
	}
	return mounts, nil
}

// prepareSubPath creates a missing folder of a writable volume, as a kubelet
// does.
func prepareSubPath(volume *corev1.Volume, path string) error {
	_, err := os.Stat(path)
	if !errors.Is(err, os.ErrNotExist) || madeFromObjects(volume) {
		return err
	}
	return os.MkdirAll(path, 0o777)
}

// madeFromObjects tells whether the API's objects decide what is in a volume.
func madeFromObjects(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}
