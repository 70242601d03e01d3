package node

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/klog/v2"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/pod"
)

// serveLogs writes a container's log.
func (p *provider) serveLogs(w http.ResponseWriter, r *http.Request) {
	options, err := logOptions(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	worker := p.worker(r.PathValue("namespace"), r.PathValue("pod"))
	if worker == nil {
		http.Error(w, "the pod is not on this node", http.StatusNotFound)
		return
	}
	log, err := worker.Log(r.PathValue("container"), r.URL.Query().Get("previous") == "true")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Transfer-Encoding", "chunked")
	output := flushWriter{w, http.NewResponseController(w)}
	if err := logs.ReadLogs(r.Context(), log.Path, log.Path, options, containerState{log: log}, output, output); err != nil && r.Context().Err() == nil {
		klog.ErrorS(err, "Serving a log", "path", log.Path)
	}
}

// logOptions reads the query that the API server sends for kubectl logs.
func logOptions(query url.Values, now time.Time) (*logs.LogOptions, error) {
	options := &logs.LogOptions{
		Follow:    query.Get("follow") == "true",
		Timestamp: query.Get("timestamps") == "true",
	}
	for name, target := range map[string]**int64{"tailLines": &options.TailLines, "limitBytes": &options.LimitBytes} {
		if text := query.Get(name); text != "" {
			value, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			*target = &value
		}
	}
	if text := query.Get("sinceSeconds"); text != "" {
		value, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("sinceSeconds: %w", err)
		}
		options.Since = now.Add(-time.Duration(value) * time.Second)
	}
	if text := query.Get("sinceTime"); text != "" {
		value, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, fmt.Errorf("sinceTime: %w", err)
		}
		options.Since = value
	}
	return options, nil
}

// containerState tells the log reader, which asks a container runtime, whether
// a log can still grow. It offers nothing else of a runtime.
type containerState struct {
	internalapi.RuntimeService
	log pod.Log
}

// ContainerStatus is the state of the container whose log is read.
func (s containerState) ContainerStatus(context.Context, string, bool) (*runtimeapi.ContainerStatusResponse, error) {
	state := runtimeapi.ContainerState_CONTAINER_EXITED
	if s.log.Running() {
		state = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{State: state}}, nil
}

// flushWriter passes every line on at once.
type flushWriter struct {
	io.Writer
	controller *http.ResponseController
}

func (f flushWriter) Write(data []byte) (int, error) {
	n, err := f.Writer.Write(data)
	if err != nil {
		return n, err
	}
	return n, f.controller.Flush()
}
