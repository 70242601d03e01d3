// Package integration tries the built program out on a real cluster. It runs
// only with TB_CLUSTER_IT=1, with the program's path in TB_CLUSTER_BIN and, if
// there is one, a metrics server's in TB_METRICS_SERVER.
package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cluster is a running cluster of the program under test.
type cluster struct {
	t       *testing.T
	program string
	dir     string
}

// start runs a cluster that ends with the test and leaves no process behind.
func start(t *testing.T) *cluster {
	if os.Getenv("TB_CLUSTER_IT") != "1" {
		t.Skip("TB_CLUSTER_IT is not 1")
	}
	c := &cluster{t: t, program: os.Getenv("TB_CLUSTER_BIN"), dir: t.TempDir()}
	images := filepath.Join(c.dir, "images.json")
	data, err := json.Marshal(map[string]any{"images": map[string]any{
		"test/web:1": map[string]any{"command": []string{"python3"}, "workdir": "/app"},
		"test/sh:1":  map[string]any{"command": []string{"sh"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(images, data, 0o644); err != nil {
		t.Fatal(err)
	}
	run := exec.Command(c.program, "run", "--dir", c.dir, "--image-map", images, "--metrics-server", os.Getenv("TB_METRICS_SERVER"))
	run.Stdout, run.Stderr = os.Stderr, os.Stderr
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if output, err := exec.Command(c.program, "down", "--dir", c.dir).CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, output)
		}
		if err := run.Wait(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	c.eventually(2*time.Minute, "the ready file", func() error {
		_, err := os.Stat(filepath.Join(c.dir, "ready"))
		return err
	})
	return c
}

// try runs kubectl.
func (c *cluster) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	args = append([]string{"kubectl", "--kubeconfig=" + filepath.Join(c.dir, "kubeconfig")}, args...)
	output, err := exec.CommandContext(ctx, c.program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, output)
	}
	return string(output), nil
}

// kubectl runs kubectl, which must succeed.
func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	output, err := c.try(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return output
}

// shows waits until kubectl's output contains a text.
func (c *cluster) shows(timeout time.Duration, text string, args ...string) {
	c.t.Helper()
	c.eventually(timeout, text, func() error {
		output, err := c.try(args...)
		if err == nil && !strings.Contains(output, text) {
			err = fmt.Errorf("%q is not in %q", text, output)
		}
		return err
	})
}

func (c *cluster) eventually(timeout time.Duration, what string, condition func() error) {
	c.t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(200 * time.Millisecond) {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

func TestCluster(t *testing.T) {
	c := start(t)
	c.kubectl("apply", "-f", "../testdata/web.yaml", "-f", "../testdata/crash.yaml")
	c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")

	t.Run("the environment, volumes and token of a pod", func(t *testing.T) {
		address := c.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}")
		body := get(t, "http://"+address+":8080/api")
		for _, want := range []string{`"POD_IP": "` + address, `"greeting": "hello"`, `"cwd": "/app"`, `app=\"web\"`, `"api": 6`} {
			if !strings.Contains(body, want) {
				t.Errorf("%s is not in %s", want, body)
			}
		}
		if _, err := os.Stat("/etc/web"); err == nil {
			t.Error("the machine sees the pod's volume")
		}
		c.kubectl("patch", "configmap", "web", "--type=merge", "-p", `{"data":{"greeting":"changed"}}`)
		c.eventually(2*time.Second, "the changed volume", func() error {
			if body := get(t, "http://"+address+":8080/"); !strings.Contains(body, `"greeting": "changed"`) {
				return fmt.Errorf("got %s", body)
			}
			return nil
		})
	})
	t.Run("pods that cannot run", func(t *testing.T) {
		status := `jsonpath={.status.phase} {.status.containerStatuses[0].state} {.status.containerStatuses[0].lastState}`
		c.shows(20*time.Second, "CrashLoopBackOff", "get", "pod", "crash", "-o", status)
		c.shows(0, `"exitCode":3`, "get", "pod", "crash", "-o", status)
		c.shows(0, "crashing", "logs", "--previous", "crash")
		c.shows(0, "ErrImagePull", "get", "pod", "unknown", "-o", status)
		c.shows(0, "CreateContainerConfigError", "get", "pod", "missing", "-o", status)
		c.shows(0, "Succeeded", "get", "pod", "completes", "-o", status)
		c.kubectl("create", "configmap", "missing", "--from-literal=a=found")
		c.shows(10*time.Second, "found", "logs", "missing")
	})
	t.Run("metrics", func(t *testing.T) {
		if os.Getenv("TB_METRICS_SERVER") == "" {
			t.Skip("no metrics server")
		}
		c.shows(90*time.Second, "web-", "top", "pods")
	})
	t.Run("rolling update, scale and deletion", func(t *testing.T) {
		c.kubectl("rollout", "restart", "deployment/web")
		c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		c.kubectl("scale", "deployment/web", "--replicas=3")
		c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		watch := exec.CommandContext(t.Context(), c.program, "kubectl", "--kubeconfig="+filepath.Join(c.dir, "kubeconfig"),
			"get", "pods", "-l", "app=web", "--watch", "--output-watch-events",
			"-o", `jsonpath={.type} {.object.metadata.name} {.object.status.containerStatuses[0].state.terminated.exitCode}{"\n"}`)
		seen, err := os.Create(filepath.Join(t.TempDir(), "watch"))
		if err != nil {
			t.Fatal(err)
		}
		watch.Stdout = seen
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.kubectl("delete", "deployment", "web", "--cascade=foreground", "--timeout=60s")
		time.Sleep(time.Second)
		if err := watch.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		events, err := os.ReadFile(seen.Name())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(map[string]bool)
		for line := range strings.Lines(string(events)) {
			fields := strings.Fields(line)
			switch {
			case len(fields) == 3 && fields[0] == "MODIFIED":
				ended[fields[1]] = fields[2] == "0"
			case len(fields) > 1 && fields[0] == "DELETED" && !ended[fields[1]]:
				t.Errorf("%s was removed before it was seen to end", fields[1])
			}
		}
		if len(ended) != 3 {
			t.Errorf("%d pods ended, want 3: %s", len(ended), events)
		}
	})
}

func get(t *testing.T, url string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "curl", "-sf", "--max-time", "5", url).Output()
	if err != nil {
		t.Fatalf("getting %s: %v", url, err)
	}
	return string(output)
}
