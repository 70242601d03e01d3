package controlplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

// How long down waits at each of its steps.
const (
	supervisorPatience = 25 * time.Second
	remnantPatience    = 3 * time.Second
)

// Down ends the cluster in dir, whatever state it is in: its supervisor in
// good order, then every process that is left.
func Down(dir string) error {
	l := layout{dir: dir}
	pid, err := supervisorPID(l)
	if err != nil {
		return err
	}
	supervisor := func() ([]int, error) {
		found, err := belonging(dir)
		return slices.DeleteFunc(found, func(p int) bool { return p != pid }), err
	}
	remnants := func() ([]int, error) { return belonging(dir) }
	steps := []struct {
		find     func() ([]int, error)
		signal   syscall.Signal
		patience time.Duration
	}{
		{supervisor, syscall.SIGTERM, supervisorPatience},
		{remnants, syscall.SIGTERM, remnantPatience},
		{remnants, syscall.SIGKILL, remnantPatience},
	}
	for _, step := range steps {
		if err := end(step.find, step.signal, step.patience); err != nil {
			return err
		}
	}
	left, err := remnants()
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%d processes of the cluster in %s outlive SIGKILL", len(left), dir)
	}
	return forget(l)
}

// forget removes the files by which others find the cluster.
func forget(l layout) error {
	for _, path := range []string{l.ready(), l.supervisorPID()} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("forgetting the cluster: %w", err)
		}
	}
	return nil
}

// supervisorPID is 0 when no supervisor is known.
func supervisorPID(l layout) (int, error) {
	data, err := os.ReadFile(l.supervisorPID())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the supervisor's id: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("reading the supervisor's id: %w", err)
	}
	return pid, nil
}

// belonging finds the living processes of the cluster in dir, except this one
// and its ancestors.
func belonging(dir string) ([]int, error) {
	processes, err := proc.List()
	if err != nil {
		return nil, err
	}
	parents := make(map[int]int, len(processes))
	for _, p := range processes {
		parents[p.PID] = p.Parent
	}
	own := make(map[int]bool)
	for pid := os.Getpid(); pid > 0; pid = parents[pid] {
		own[pid] = true
	}
	var found []int
	for _, p := range processes {
		if !own[p.PID] && !p.Zombie && proc.Carries(p.PID, proc.ClusterMarker(dir)) {
			found = append(found, p.PID)
		}
	}
	return found, nil
}

// end sends a signal to the processes that find finds and waits until there
// are none or the patience is over.
func end(find func() ([]int, error), signal syscall.Signal, patience time.Duration) error {
	signalled := make(map[int]bool)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		pids, err := find()
		if err != nil || len(pids) == 0 || time.Now().After(deadline) {
			return err
		}
		for _, pid := range pids {
			if !signalled[pid] {
				signalled[pid] = true
				// One that has ended in between is what we want.
				_ = syscall.Kill(pid, signal)
			}
		}
	}
}
