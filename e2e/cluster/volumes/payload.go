package volumes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/volume/configmap"
	"k8s.io/kubernetes/pkg/volume/secret"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"
	"k8s.io/utils/ptr"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/podinfo"
)

// files are the contents of a volume by path.
type files map[string]volumeutil.FileProjection

// payload reads the files of a volume that is made from objects.
func (m *Manager) payload(ctx context.Context, pod Pod, volume *corev1.Volume) (files, error) {
	switch {
	case volume.ConfigMap != nil:
		s := volume.ConfigMap
		return m.configMap(ctx, pod, s.Name, s.Items, s.DefaultMode, s.Optional)
	case volume.Secret != nil:
		s := volume.Secret
		return m.secret(ctx, pod, s.SecretName, s.Items, s.DefaultMode, s.Optional)
	case volume.DownwardAPI != nil:
		return m.downward(pod, volume.DownwardAPI.Items, volume.DownwardAPI.DefaultMode)
	case volume.Projected != nil:
		return m.projected(ctx, pod, volume.Projected)
	}
	return nil, errors.New("this node does not offer volumes of this type")
}

func (m *Manager) configMap(ctx context.Context, pod Pod, name string, items []corev1.KeyToPath, mode *int32, optional *bool) (files, error) {
	object, err := m.client.CoreV1().ConfigMaps(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && ptr.Deref(optional, false) {
		return files{}, nil
	}
	if err != nil {
		return nil, err
	}
	return configmap.MakePayload(items, object, mode, ptr.Deref(optional, false))
}

func (m *Manager) secret(ctx context.Context, pod Pod, name string, items []corev1.KeyToPath, mode *int32, optional *bool) (files, error) {
	object, err := m.client.CoreV1().Secrets(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && ptr.Deref(optional, false) {
		return files{}, nil
	}
	if err != nil {
		return nil, err
	}
	return secret.MakePayload(items, object, mode, ptr.Deref(optional, false))
}

func (m *Manager) downward(pod Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) (files, error) {
	payload := make(files, len(items))
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = podinfo.Field(pod.Pod, item.FieldRef, pod.Addresses)
		case item.ResourceFieldRef != nil:
			value, err = podinfo.Resource(pod.Pod, item.ResourceFieldRef, "", m.allocatable)
		}
		if err != nil {
			return nil, err
		}
		payload[path.Clean(item.Path)] = volumeutil.FileProjection{
			Data: []byte(value),
			Mode: ptr.Deref(item.Mode, ptr.Deref(mode, corev1.DownwardAPIVolumeSourceDefaultMode)),
		}
	}
	return payload, nil
}

func (m *Manager) projected(ctx context.Context, pod Pod, volume *corev1.ProjectedVolumeSource) (files, error) {
	payload := make(files)
	for _, source := range volume.Sources {
		var part files
		var err error
		switch {
		case source.ConfigMap != nil:
			s := source.ConfigMap
			part, err = m.configMap(ctx, pod, s.Name, s.Items, volume.DefaultMode, s.Optional)
		case source.Secret != nil:
			s := source.Secret
			part, err = m.secret(ctx, pod, s.Name, s.Items, volume.DefaultMode, s.Optional)
		case source.DownwardAPI != nil:
			part, err = m.downward(pod, source.DownwardAPI.Items, volume.DefaultMode)
		case source.ServiceAccountToken != nil:
			part, err = m.token(pod, source.ServiceAccountToken, volume.DefaultMode)
		default:
			err = errors.New("this node does not offer projections of this type")
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(payload, part)
	}
	return payload, nil
}

// token requests a service account's token that is bound to the pod. The token
// manager hands out the same one until it is time for the next.
func (m *Manager) token(pod Pod, source *corev1.ServiceAccountTokenProjection, mode *int32) (files, error) {
	var audiences []string
	if source.Audience != "" {
		audiences = []string{source.Audience}
	}
	request, err := m.tokens.GetServiceAccountToken(pod.Namespace, pod.Spec.ServiceAccountName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:         audiences,
			ExpirationSeconds: source.ExpirationSeconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID,
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("requesting a token: %w", err)
	}
	return files{source.Path: {
		Data: []byte(request.Status.Token),
		Mode: ptr.Deref(mode, corev1.ProjectedVolumeSourceDefaultMode),
	}}, nil
}
