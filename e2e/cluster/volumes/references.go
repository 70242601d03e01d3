package volumes

import corev1 "k8s.io/api/core/v1"

// UsesConfigMap tells whether a volume of the pod shows the ConfigMap.
func UsesConfigMap(pod *corev1.Pod, name string) bool {
	return uses(pod, func(v *corev1.Volume) bool {
		return v.ConfigMap != nil && v.ConfigMap.Name == name
	}, func(p *corev1.VolumeProjection) bool {
		return p.ConfigMap != nil && p.ConfigMap.Name == name
	})
}

// UsesSecret tells whether a volume of the pod shows the Secret.
func UsesSecret(pod *corev1.Pod, name string) bool {
	return uses(pod, func(v *corev1.Volume) bool {
		return v.Secret != nil && v.Secret.SecretName == name
	}, func(p *corev1.VolumeProjection) bool {
		return p.Secret != nil && p.Secret.Name == name
	})
}

func uses(pod *corev1.Pod, volume func(*corev1.Volume) bool, projection func(*corev1.VolumeProjection) bool) bool {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if volume(v) {
			return true
		}
		if v.Projected == nil {
			continue
		}
		for j := range v.Projected.Sources {
			if projection(&v.Projected.Sources[j]) {
				return true
			}
		}
	}
	return false
}
