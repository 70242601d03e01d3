package node

import (
	"sync"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/pod"
)

// cpuSum adds up the processor time of containers and keeps that of those that
// have ended.
type cpuSum struct {
	mu    sync.Mutex
	total float64
	last  map[string]float64
}

// observe takes in the containers that run now and returns the node's total.
func (s *cpuSum) observe(usages []pod.Usage) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := make(map[string]float64, len(usages))
	for _, u := range usages {
		run := u.Namespace + "/" + u.Pod + "/" + u.Container + "@" + u.StartedAt.String()
		current[run] = u.CPUSeconds
		s.total += u.CPUSeconds - s.last[run]
	}
	s.last = current
	return s.total
}
