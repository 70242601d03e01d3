package controlplane

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

// component is a running child process.
type component struct {
	name    string
	command *exec.Cmd
	exited  chan struct{}
	err     error // set before exited is closed
}

// starter starts components of one cluster.
type starter struct {
	layout  layout
	spawner *proc.Spawner
	deaths  chan *component
}

// start starts a program; its output goes to the component's log.
func (s *starter) start(name, program string, args ...string) (*component, error) {
	path := s.layout.log(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("creating the log folder: %w", err)
	}
	log, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("creating the log of %s: %w", name, err)
	}
	defer log.Close()
	c := &component{name: name, command: exec.Command(program, args...), exited: make(chan struct{})}
	c.command.Env = append(os.Environ(), proc.ClusterMarker(s.layout.dir))
	c.command.Dir = s.layout.dir
	c.command.Stdout, c.command.Stderr = log, log
	if err := s.spawner.Start(c.command); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		c.err = c.command.Wait()
		close(c.exited)
		s.deaths <- c
	}()
	return c, nil
}

// stop ends the component, by force after the patience is over.
func (c *component) stop(patience time.Duration) error {
	if err := c.command.Process.Signal(syscall.SIGTERM); err != nil {
		return nil // It has ended.
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-c.exited:
		return nil
	case <-timer.C:
	}
	if err := c.command.Process.Kill(); err != nil {
		return fmt.Errorf("killing %s: %w", c.name, err)
	}
	<-c.exited
	return nil
}

// until polls condition until it holds, ctx ends or time runs out.
func until(ctx context.Context, timeout time.Duration, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
