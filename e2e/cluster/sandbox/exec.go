package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exec runs a command in the sandbox of a running process and returns its
// output. It needs root's rights.
func Exec(ctx context.Context, pid int, spec Spec) ([]byte, error) {
	type result struct {
		output []byte
		err    error
	}
	results := make(chan result, 1)
	go func() {
		// The thread joins the sandbox and must end with the goroutine, so it
		// stays locked; the command dies with it.
		runtime.LockOSThread()
		output, err := execHere(ctx, pid, spec)
		results <- result{output, err}
	}()
	r := <-results
	return r.output, r.err
}

func execHere(ctx context.Context, pid int, spec Spec) ([]byte, error) {
	namespace, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("opening the sandbox: %w", err)
	}
	defer namespace.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("leaving the shared file system state: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("joining the sandbox: %w", err)
	}
	program, err := LookPath(spec.Command[0], spec.Env)
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, program, spec.Command[1:]...)
	command.Env = spec.Env
	command.Dir = spec.Workdir
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = time.Second
	return command.CombinedOutput()
}
