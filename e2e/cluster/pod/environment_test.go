package pod

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/podinfo"
)

func testRuntime() *Runtime {
	client := fake.NewClientset(
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "config"}, Data: map[string]string{"a": "1", "b": "2"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "secret"}, Data: map[string][]byte{"key": []byte("s3cret")}},
	)
	factory := informers.NewSharedInformerFactory(client, 0)
	return &Runtime{Client: client, Services: factory.Core().V1().Services().Lister(), APIServerPort: 6443}
}

func resolve(t *testing.T, container *corev1.Container) (map[string]string, error) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}}
	return testRuntime().environment(t.Context(), pod, container, podinfo.Addresses{PodIP: "127.1.1.1", HostIP: "127.0.0.1"})
}

func TestEnvironmentResolvesAllSources(t *testing.T) {
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	missing := corev1.LocalObjectReference{Name: "missing"}
	got, err := resolve(t, &corev1.Container{
		EnvFrom: []corev1.EnvFromSource{
			{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: missing, Optional: ptr.To(true)}},
		},
		Env: []corev1.EnvVar{
			{Name: "IP", ValueFrom: field("status.podIP")},
			{Name: "UID", ValueFrom: field("metadata.uid")},
			{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "secret"}, Key: "key"}}},
			{Name: "ABSENT", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: missing, Key: "a", Optional: ptr.To(true)}}},
			{Name: "URL", Value: "http://$(IP):$(P_a)/$$(IP)/$(LATER)?$(KUBERNETES_SERVICE_PORT)"},
			{Name: "LATER", Value: "x"},
			{Name: "P_b", Value: "own"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"P_a": "1", "P_b": "own", "IP": "127.1.1.1", "UID": "u", "SECRET": "s3cret", "LATER": "x",
		"URL":                     "http://127.1.1.1:1/$(IP)/$(LATER)?6443",
		"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "6443",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
	if value, set := got["ABSENT"]; set {
		t.Errorf("ABSENT is set to %q", value)
	}
}

func TestEnvironmentNeedsWhatIsNotOptional(t *testing.T) {
	_, err := resolve(t, &corev1.Container{Env: []corev1.EnvVar{{
		Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}, Key: "zzz"}},
	}}})
	if err == nil || !strings.Contains(err.Error(), "couldn't find key zzz in ConfigMap ns/config") {
		t.Errorf("unexpected error %v", err)
	}
}

func TestCommandExpandsVariables(t *testing.T) {
	got := expandCommand(&corev1.Container{Command: []string{"run"}, Args: []string{"$(A)", "$$(A)", "$(B)"}}, map[string]string{"A": "1"})
	if line := strings.Join(append(got.Command, got.Args...), " "); line != "run 1 $(A) $(B)" {
		t.Errorf("got %q", line)
	}
}
