package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/components"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
)

const (
	stageTimeout = 2 * time.Minute
	// The node ends all pods when it stops; the others have nothing to finish.
	nodePatience      = 15 * time.Second
	componentPatience = 3 * time.Second
	// NodeSubcommand makes this binary the node.
	NodeSubcommand = "node"
)

// Options of a cluster.
type Options struct {
	Dir           string
	Name          string
	ImageMap      string
	MetricsServer string   // the program's path; empty for none
	AuditPolicy   string   // a file; empty for no audit
	APIServerArgs []string // more of its flags
}

// state is what the ready file says.
type state struct {
	APIServer  string         `json:"apiServer"`
	Kubeconfig string         `json:"kubeconfig"`
	PodSubnet  string         `json:"podSubnet"`
	Node       string         `json:"node"`
	Ports      ports          `json:"ports"`
	PIDs       map[string]int `json:"pids"`
}

// supervisor runs one cluster.
type supervisor struct {
	options  Options
	layout   layout
	claim    *claim
	starter  *starter
	running  []*component
	progress io.Writer
	begun    time.Time
}

// Run runs a cluster until ctx ends, and fails if a component ends before.
// Progress gets a line for every stage.
func Run(ctx context.Context, options Options, progress io.Writer) error {
	s, err := newSupervisor(options, progress)
	if err != nil {
		return err
	}
	// Whatever ends the stages, a signal or the death of a component, ends run.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case dead := <-s.starter.deaths:
			cancel(fmt.Errorf("%s ended unexpectedly (%w), see %s", dead.name, describe(dead.err), s.layout.log(dead.name)))
		case <-ctx.Done():
		}
	}()
	err = s.launch(ctx)
	if err == nil {
		<-ctx.Done()
	}
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		err = nil
	} else if cause != nil {
		err = cause
	}
	if err != nil {
		s.report("FAILED: " + err.Error())
	}
	return errors.Join(err, s.shutdown())
}

// describe makes an error of a component's end, which may have been orderly.
func describe(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

func newSupervisor(options Options, progress io.Writer) (*supervisor, error) {
	l := layout{dir: options.Dir}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating the cluster's folder: %w", err)
	}
	// The lock is held until the process ends, like the claim.
	if _, err := lockFile(l.lock()); errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("a cluster runs in %s already", l.dir)
	} else if err != nil {
		return nil, err
	}
	found, err := belonging(l.dir)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 {
		return nil, fmt.Errorf("%d processes of an earlier cluster in %s are alive; end them with the command down", len(found), l.dir)
	}
	for _, path := range l.leftovers() {
		if err := os.RemoveAll(path); err != nil {
			return nil, fmt.Errorf("removing what an earlier cluster left: %w", err)
		}
	}
	if err := os.WriteFile(l.supervisorPID(), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return nil, fmt.Errorf("writing the supervisor's id: %w", err)
	}
	claim, err := takeClaim()
	if err != nil {
		return nil, err
	}
	return &supervisor{
		options: options, layout: l, claim: claim, progress: progress, begun: time.Now(),
		starter: &starter{layout: l, spawner: proc.NewSpawner(), deaths: make(chan *component, 16)},
	}, nil
}

// launch brings the cluster up stage by stage.
func (s *supervisor) launch(ctx context.Context) error {
	l, p := s.layout, s.claim.ports
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	apiServer := "https://" + loopback(p.APIServer)
	if err := createCredentials(l, apiServer); err != nil {
		return err
	}
	s.report(fmt.Sprintf("credentials created, ports from %d, pods in %s", p.EtcdClient, s.claim.subnet))

	if err := s.start(components.Etcd, self, append([]string{components.Etcd}, etcdFlags(l, p)...)...); err != nil {
		return err
	}
	if err := s.start(components.APIServer, self, append([]string{components.APIServer}, apiServerFlags(l, p, s.options)...)...); err != nil {
		return err
	}
	checks, err := newChecks(l.componentKubeconfig(adminName))
	if err != nil {
		return err
	}
	if err := until(ctx, stageTimeout, checks.apiServerReady); err != nil {
		return fmt.Errorf("waiting for the API server: %w", err)
	}
	s.report("API server ready")

	others := []struct {
		name  string
		flags []string
	}{
		{components.ControllerManager, controllerManagerFlags(l, p)},
		{components.Scheduler, schedulerFlags(l, p)},
		{NodeSubcommand, nodeFlags(l, s.options, s.claim)},
	}
	for _, other := range others {
		if err := s.start(other.name, self, append([]string{other.name}, other.flags...)...); err != nil {
			return err
		}
	}
	if s.options.MetricsServer != "" {
		if err := s.startMetricsServer(ctx, checks); err != nil {
			return err
		}
	}
	if err := until(ctx, stageTimeout, func(ctx context.Context) error { return checks.nodeReady(ctx, s.options.Name) }); err != nil {
		return fmt.Errorf("waiting for the node: %w", err)
	}
	s.report("node ready")
	if err := until(ctx, stageTimeout, checks.namespaceReady); err != nil {
		return fmt.Errorf("waiting for the default namespace: %w", err)
	}
	return s.announce(apiServer)
}

// announce writes the administrator's kubeconfig and the ready file.
func (s *supervisor) announce(apiServer string) error {
	if err := writeKubeconfig(s.layout, adminName, s.layout.kubeconfig(), apiServer); err != nil {
		return err
	}
	pids := map[string]int{"supervisor": os.Getpid()}
	for _, c := range s.running {
		pids[c.name] = c.command.Process.Pid
	}
	data, err := json.MarshalIndent(state{
		APIServer: apiServer, Kubeconfig: s.layout.kubeconfig(), PodSubnet: s.claim.subnet,
		Node: s.options.Name, Ports: s.claim.ports, PIDs: pids,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the cluster's state: %w", err)
	}
	// By renaming, so that whoever waits for the file sees all of it.
	partial := s.layout.ready() + ".partial"
	if err := os.WriteFile(partial, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the ready file: %w", err)
	}
	if err := os.Rename(partial, s.layout.ready()); err != nil {
		return fmt.Errorf("writing the ready file: %w", err)
	}
	s.report("cluster ready, KUBECONFIG=" + s.layout.kubeconfig())
	return nil
}

func (s *supervisor) start(name, program string, args ...string) error {
	c, err := s.starter.start(filepath.Base(name), program, args...)
	if err != nil {
		return err
	}
	s.running = append(s.running, c)
	return nil
}

// shutdown ends the pods with the node first, then the others, the one that
// was started last before those that it depends on.
func (s *supervisor) shutdown() error {
	s.report("stopping")
	var failures []error
	if err := os.RemoveAll(s.layout.ready()); err != nil {
		failures = append(failures, fmt.Errorf("removing the ready file: %w", err))
	}
	for _, c := range s.running {
		if c.name == NodeSubcommand {
			failures = append(failures, c.stop(nodePatience))
		}
	}
	for i := len(s.running) - 1; i >= 0; i-- {
		failures = append(failures, s.running[i].stop(componentPatience))
	}
	s.report("stopped")
	return errors.Join(failures...)
}

// report writes a line of progress. A reader who has gone does not matter.
func (s *supervisor) report(line string) {
	fmt.Fprintf(s.progress, "%6.1fs  %s\n", time.Since(s.begun).Seconds(), line)
}
