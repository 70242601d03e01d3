package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

// StartError means that the command of a sandbox could not be started.
type StartError struct{ Reason string }

func (e *StartError) Error() string { return e.Reason }

// Start starts the spec's command in a new sandbox and returns once it runs.
// The command's output goes to stdout and stderr.
func Start(spawner *proc.Spawner, spec Spec, stdout, stderr *os.File) (*exec.Cmd, error) {
	specReader, specWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("creating a pipe: %w", err)
	}
	defer specReader.Close()
	defer specWriter.Close()
	errorReader, errorWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("creating a pipe: %w", err)
	}
	defer errorReader.Close()
	defer errorWriter.Close()

	command := exec.Command("/proc/self/exe", Subcommand)
	command.Env = spec.Env
	command.Stdout, command.Stderr = stdout, stderr
	command.ExtraFiles = []*os.File{specReader, errorWriter}
	command.SysProcAttr = isolation()
	if err := spawner.Start(command); err != nil {
		return nil, fmt.Errorf("starting the sandbox: %w", err)
	}
	// Only the helper may hold these ends, so that its end closes them.
	specReader.Close()
	errorWriter.Close()
	encodeErr := json.NewEncoder(specWriter).Encode(spec)
	specWriter.Close()
	reason, readErr := io.ReadAll(errorReader)
	if encodeErr == nil && readErr == nil && len(reason) == 0 {
		return command, nil
	}
	killErr := command.Process.Kill()
	if errors.Is(killErr, os.ErrProcessDone) {
		killErr = nil
	}
	waitErr := command.Wait()
	if len(reason) > 0 {
		return nil, &StartError{Reason: string(reason)}
	}
	return nil, fmt.Errorf("handing over the sandbox's spec: %w", errors.Join(encodeErr, readErr, killErr, waitErr))
}

// isolation asks for a mount namespace and, without root's rights, for the
// user namespace that makes one possible.
func isolation() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}
