package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is one process as /proc shows it.
type Process struct {
	PID     int
	Parent  int
	Session int
	Zombie  bool
	// CPUTicks counts the processor time of the process and of its children
	// that have ended and that it has waited for, in clock ticks.
	CPUTicks uint64
}

// List reads all processes of the machine; those that end meanwhile are left
// out.
func List() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var processes []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue
		}
		if process, err := parseStat(pid, string(stat)); err == nil {
			processes = append(processes, process)
		}
	}
	return processes, nil
}

// parseStat reads the fields of /proc/PID/stat, see proc_pid_stat(5). The
// second field is the command in parentheses and may hold any character.
func parseStat(pid int, stat string) (Process, error) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return Process{}, errors.New("stat without a command")
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 15 {
		return Process{}, errors.New("stat is too short")
	}
	process := Process{PID: pid, Zombie: fields[0] == "Z"}
	var err error
	if process.Parent, err = strconv.Atoi(fields[1]); err != nil {
		return Process{}, fmt.Errorf("parent: %w", err)
	}
	if process.Session, err = strconv.Atoi(fields[3]); err != nil {
		return Process{}, fmt.Errorf("session: %w", err)
	}
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		ticks, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return Process{}, fmt.Errorf("processor time: %w", err)
		}
		process.CPUTicks += ticks
	}
	return process, nil
}

// Carries tells whether the process's environment holds the entry marker.
func Carries(pid int, marker string) bool {
	environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return false
	}
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if string(entry) == marker {
			return true
		}
	}
	return false
}

// Group finds the living processes of a container among processes: those that
// carry its marker and, because a process may overwrite its environment, the
// sessions and descendants of its main process.
func Group(processes []Process, mainPID int, marker string) []Process {
	members := make(map[int]bool)
	for _, p := range processes {
		if p.PID == mainPID || p.Session == mainPID || Carries(p.PID, marker) {
			members[p.PID] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, p := range processes {
			if !members[p.PID] && members[p.Parent] {
				members[p.PID], grown = true, true
			}
		}
	}
	var group []Process
	for _, p := range processes {
		if members[p.PID] && !p.Zombie {
			group = append(group, p)
		}
	}
	return group
}

// KillGroup kills what is left of a container's processes and returns when
// none is alive or after the timeout.
func KillGroup(mainPID int, marker string, timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(5 * time.Millisecond) {
		processes, err := List()
		if err != nil {
			return err
		}
		group := Group(processes, mainPID, marker)
		if len(group) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s outlive SIGKILL", len(group), marker)
		}
		for _, p := range group {
			// A process that has ended in between is what we want.
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
}
