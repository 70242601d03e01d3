package pod

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

// ticksPerSecond is Linux's USER_HZ, which is 100 on every architecture that
// Go supports.
const ticksPerSecond = 100

// Usage is what a running container has used.
type Usage struct {
	Namespace, Pod, Container string
	StartedAt                 time.Time
	CPUSeconds                float64
	MemoryBytes               uint64
}

// usageCounter keeps a container's processor time from falling when one of its
// processes ends and takes its time along.
type usageCounter struct {
	mu          sync.Mutex
	last, total uint64
}

// add takes in the time of the living processes and returns the total.
func (u *usageCounter) add(ticks uint64) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if ticks > u.last {
		u.total += ticks - u.last
	}
	u.last = ticks
	return u.total
}

// measure reads the usage of the container's processes among processes.
func (p *process) measure(processes []proc.Process) (cpuSeconds float64, memory uint64) {
	var ticks uint64
	for _, member := range proc.Group(processes, p.pid(), p.marker) {
		ticks += member.CPUTicks
		memory += memoryOf(member.PID)
	}
	return float64(p.usage.add(ticks)) / ticksPerSecond, memory
}

// memoryOf is a process's share of the memory it has resident, so that memory
// that forked workers share counts once.
func memoryOf(pid int) uint64 {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0 // The process has ended.
	}
	for line := range bytes.Lines(rollup) {
		if value, ok := strings.CutPrefix(string(line), "Pss:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib * 1024
		}
	}
	return 0
}
