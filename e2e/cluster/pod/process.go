package pod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/sandbox"
)

// killTimeout bounds the wait for processes to vanish after SIGKILL.
const killTimeout = 5 * time.Second

// process is one run of a container: its main process and all descendants.
type process struct {
	spec      sandbox.Spec
	command   *exec.Cmd
	marker    string
	startedAt time.Time
	usage     usageCounter

	// exited is closed when no process is left and the log is complete.
	exited     chan struct{}
	exitCode   int
	finishedAt time.Time
}

// startProcess runs spec's command and writes its output to log, which it
// closes in the end.
func startProcess(spawner *proc.Spawner, spec sandbox.Spec, marker string, log *logFile) (*process, error) {
	if err := os.MkdirAll(spec.Root, 0o755); err != nil {
		return nil, fmt.Errorf("creating the sandbox's root: %w", err)
	}
	stdoutReader, stdoutWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("creating a pipe: %w", err)
	}
	defer stdoutWriter.Close()
	stderrReader, stderrWriter, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("creating a pipe: %w", err), stdoutReader.Close())
	}
	defer stderrWriter.Close()
	command, err := sandbox.Start(spawner, spec, stdoutWriter, stderrWriter)
	if err != nil {
		return nil, errors.Join(err, stdoutReader.Close(), stderrReader.Close())
	}
	p := &process{
		spec: spec, command: command, marker: marker,
		startedAt: time.Now(), exited: make(chan struct{}),
	}
	var copies sync.WaitGroup
	for stream, reader := range map[string]*os.File{"stdout": stdoutReader, "stderr": stderrReader} {
		copies.Go(func() {
			if err := errors.Join(log.copy(stream, reader), reader.Close()); err != nil {
				klog.ErrorS(err, "Copying a container's output", "container", marker)
			}
		})
	}
	go p.reap(&copies, log)
	return p, nil
}

// reap waits for the main process, ends its descendants and records the exit.
func (p *process) reap(copies *sync.WaitGroup, log *logFile) {
	defer close(p.exited)
	// The main process stays a zombie while its descendants are looked for, so
	// that its id cannot become another process's.
	for {
		err := unix.Waitid(unix.P_PID, p.pid(), nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err := proc.KillGroup(p.pid(), p.marker, killTimeout); err != nil {
		klog.ErrorS(err, "Ending a container's processes", "container", p.marker)
	}
	err := p.command.Wait()
	p.finishedAt = time.Now()
	p.exitCode = exitCode(p.command.ProcessState)
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		klog.ErrorS(err, "Waiting for a container", "container", p.marker)
	}
	copies.Wait()
	if err := log.close(); err != nil {
		klog.ErrorS(err, "Closing a container's log", "container", p.marker)
	}
}

// exitCode is the exit code as container runtimes report it.
func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

func (p *process) pid() int { return p.command.Process.Pid }

// signal sends a signal to the main process only, as a container runtime does.
func (p *process) signal(signal syscall.Signal) {
	if err := p.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		klog.ErrorS(err, "Signalling a container", "container", p.marker, "signal", signal)
	}
}

// kill ends all processes at once.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
}
