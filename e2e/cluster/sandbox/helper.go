package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// Subcommand makes this binary the helper that enters a sandbox.
	Subcommand = "sandbox"

	specDescriptor  = 3 // The helper reads its spec here,
	errorDescriptor = 4 // and writes why it failed there.
)

// Main is the helper: it enters the sandbox whose spec it is given and becomes
// the spec's command. It returns only when that fails, with the exit code.
func Main() int {
	report := os.NewFile(errorDescriptor, "error")
	syscall.CloseOnExec(errorDescriptor)
	err := run(os.NewFile(specDescriptor, "spec"))
	if _, writeErr := report.WriteString(err.Error()); writeErr != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
	}
	return 128
}

func run(input *os.File) error {
	var spec Spec
	if err := json.NewDecoder(input).Decode(&spec); err != nil {
		return fmt.Errorf("reading the spec: %w", err)
	}
	if err := input.Close(); err != nil {
		return fmt.Errorf("closing the spec: %w", err)
	}
	if err := enter(spec); err != nil {
		return err
	}
	if spec.Workdir != "" {
		if err := os.Chdir(spec.Workdir); err != nil {
			return fmt.Errorf("entering the working folder: %w", err)
		}
	}
	program, err := LookPath(spec.Command[0], spec.Env)
	if err != nil {
		return err
	}
	return fmt.Errorf("executing %s: %w", program, syscall.Exec(program, spec.Command, spec.Env))
}

// LookPath finds a program in the PATH of env instead of this process's.
func LookPath(program string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for _, entry := range env {
		path, ok := strings.CutPrefix(entry, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			if found, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
				return found, nil
			}
		}
	}
	return "", fmt.Errorf("%q: %w", program, errors.Join(exec.ErrNotFound))
}
