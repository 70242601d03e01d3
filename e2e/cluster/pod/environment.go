package pod

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
	"k8s.io/utils/ptr"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/podinfo"
)

// environment resolves what a container's env and envFrom say, together with
// the variables that describe services. The image's own are not in it.
func (r *Runtime) environment(ctx context.Context, pod *corev1.Pod, container *corev1.Container, addresses podinfo.Addresses) (map[string]string, error) {
	services, err := r.serviceVariables(pod)
	if err != nil {
		return nil, err
	}
	result := make(map[string]string)
	for i := range container.EnvFrom {
		if err := r.addEnvFrom(ctx, pod.Namespace, &container.EnvFrom[i], result); err != nil {
			return nil, err
		}
	}
	mapping := expansion.MappingFuncFor(result, services)
	for i := range container.Env {
		variable := &container.Env[i]
		value, found := expansion.Expand(variable.Value, mapping), true
		if variable.ValueFrom != nil {
			value, found, err = r.valueFrom(ctx, pod, container, variable.ValueFrom, addresses)
			if err != nil {
				return nil, err
			}
		}
		if found {
			result[variable.Name] = value
		}
	}
	for name, value := range services {
		if _, set := result[name]; !set {
			result[name] = value
		}
	}
	return result, nil
}

// serviceVariables describe the API server, where this machine offers it, and
// the services of the pod's namespace.
func (r *Runtime) serviceVariables(pod *corev1.Pod) (map[string]string, error) {
	services := []*corev1.Service{{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "127.0.0.1",
			Ports:     []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: int32(r.APIServerPort)}},
		},
	}}
	if ptr.Deref(pod.Spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks) {
		own, err := r.Services.Services(pod.Namespace).List(labels.Everything())
		if err != nil {
			return nil, fmt.Errorf("listing services: %w", err)
		}
		for _, service := range own {
			if service.Name != "kubernetes" && len(service.Spec.Ports) > 0 {
				services = append(services, service)
			}
		}
	}
	result := make(map[string]string)
	for _, variable := range envvars.FromServices(services) {
		result[variable.Name] = variable.Value
	}
	return result, nil
}

// addEnvFrom adds all keys of a ConfigMap or Secret to result.
func (r *Runtime) addEnvFrom(ctx context.Context, namespace string, source *corev1.EnvFromSource, result map[string]string) error {
	add := func(key, value string) {
		if name := source.Prefix + key; name != "" && !strings.ContainsRune(name, '=') {
			result[name] = value
		}
	}
	switch {
	case source.ConfigMapRef != nil:
		ref := source.ConfigMapRef
		object, err := r.Client.CoreV1().ConfigMaps(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return unlessOptional(err, ref.Optional)
		}
		for key, value := range object.Data {
			add(key, value)
		}
	case source.SecretRef != nil:
		ref := source.SecretRef
		object, err := r.Client.CoreV1().Secrets(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return unlessOptional(err, ref.Optional)
		}
		for key, value := range object.Data {
			add(key, string(value))
		}
	}
	return nil
}

// valueFrom resolves a reference; found is false when it is optional and what
// it refers to does not exist.
func (r *Runtime) valueFrom(ctx context.Context, pod *corev1.Pod, container *corev1.Container, source *corev1.EnvVarSource, addresses podinfo.Addresses) (value string, found bool, err error) {
	switch {
	case source.FieldRef != nil:
		value, err = podinfo.Field(pod, source.FieldRef, addresses)
		return value, err == nil, err
	case source.ResourceFieldRef != nil:
		value, err = podinfo.Resource(pod, source.ResourceFieldRef, container.Name, r.Allocatable)
		return value, err == nil, err
	case source.ConfigMapKeyRef != nil:
		ref := source.ConfigMapKeyRef
		object, err := r.Client.CoreV1().ConfigMaps(pod.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return "", false, unlessOptional(err, ref.Optional)
		}
		if value, found = object.Data[ref.Key]; !found && !ptr.Deref(ref.Optional, false) {
			err = fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", ref.Key, pod.Namespace, ref.Name)
		}
		return value, found, err
	case source.SecretKeyRef != nil:
		ref := source.SecretKeyRef
		object, err := r.Client.CoreV1().Secrets(pod.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return "", false, unlessOptional(err, ref.Optional)
		}
		data, found := object.Data[ref.Key]
		if !found && !ptr.Deref(ref.Optional, false) {
			err = fmt.Errorf("couldn't find key %s in Secret %s/%s", ref.Key, pod.Namespace, ref.Name)
		}
		return string(data), found, err
	}
	return "", false, fmt.Errorf("this node does not offer this source of an environment variable")
}

// unlessOptional forgives a missing object that is declared optional.
func unlessOptional(err error, optional *bool) error {
	if apierrors.IsNotFound(err) && ptr.Deref(optional, false) {
		return nil
	}
	return err
}

// entries merges environments, later ones first in precedence, into sorted
// NAME=value entries.
func entries(environments ...map[string]string) []string {
	merged := make(map[string]string)
	for _, environment := range environments {
		maps.Copy(merged, environment)
	}
	result := make([]string, 0, len(merged))
	for name, value := range merged {
		result = append(result, name+"="+value)
	}
	slices.Sort(result)
	return result
}
