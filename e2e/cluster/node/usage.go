package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/pod"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

// serveUsage writes what the metrics server scrapes from a kubelet.
func (p *provider) serveUsage(w http.ResponseWriter, _ *http.Request) {
	processes, err := proc.List()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	now := time.Now()
	var usages []pod.Usage
	for _, worker := range p.all() {
		usages = append(usages, worker.Usage(processes)...)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	writeUsage(w, usages, p.nodeCPU.observe(usages), now)
}

// writeUsage formats usages; nodeCPU is the processor time of the whole node.
func writeUsage(w io.Writer, usages []pod.Usage, nodeCPU float64, now time.Time) {
	millis := now.UnixMilli()
	var memory uint64
	for _, u := range usages {
		memory += u.MemoryBytes
	}
	fmt.Fprintf(w, "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total %f %d\n", nodeCPU, millis)
	fmt.Fprintf(w, "# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes %d %d\n", memory, millis)
	family := func(name, kind string, value func(pod.Usage) string) {
		fmt.Fprintf(w, "# TYPE %s %s\n", name, kind)
		for _, u := range usages {
			fmt.Fprintf(w, "%s{container=%q,namespace=%q,pod=%q} %s %d\n", name, u.Container, u.Namespace, u.Pod, value(u), millis)
		}
	}
	family("container_cpu_usage_seconds_total", "counter", func(u pod.Usage) string { return fmt.Sprintf("%f", u.CPUSeconds) })
	family("container_memory_working_set_bytes", "gauge", func(u pod.Usage) string { return fmt.Sprint(u.MemoryBytes) })
	family("container_start_time_seconds", "gauge", func(u pod.Usage) string {
		return fmt.Sprintf("%f", float64(u.StartedAt.UnixNano())/float64(time.Second))
	})
}

// servePods writes the node's pods.
func (p *provider) servePods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{}
	list.APIVersion, list.Kind = "v1", "PodList"
	for _, worker := range p.all() {
		list.Items = append(list.Items, *snapshot(worker))
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(list); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
