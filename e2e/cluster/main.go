// Tb-cluster is a Kubernetes cluster in one program, for machines without
// containers: etcd, the control plane and kubectl are linked in, and its node
// runs pods as processes. See "tb-cluster help".
//
// Build it with CGO_ENABLED=0 and -trimpath, and with -ldflags
// "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3", for without the
// version neither helm nor "kubectl version" can make sense of the cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/components"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/controlplane"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/node"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/sandbox"
)

const usage = `usage:
  tb-cluster run --dir DIR --image-map FILE [--metrics-server PATH] [--audit-policy FILE]
          [--api-server-arg FLAG]... [--name NAME]
      run a cluster below DIR until SIGTERM; DIR/ready appears when it is ready
  tb-cluster down --dir DIR
      end the cluster of DIR, whatever state it is in
  tb-cluster kubectl|etcd|kube-apiserver|kube-controller-manager|kube-scheduler ...
      be that program; a link named kubectl does the same
`

func main() {
	if filepath.Base(os.Args[0]) == components.Kubectl {
		code, _ := components.Run(components.Kubectl, os.Args[1:])
		os.Exit(code)
	}
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	os.Exit(dispatch(os.Args[1], os.Args[2:]))
}

// dispatch runs a sub-command and returns the exit code.
func dispatch(name string, args []string) int {
	var err error
	switch name {
	case "run":
		err = run(args)
	case "down":
		err = down(args)
	case controlplane.NodeSubcommand:
		err = runNode(args)
	case sandbox.Subcommand:
		return sandbox.Main()
	case "help", "-h", "--help":
		fmt.Print(usage)
	default:
		code, ok := components.Run(name, args)
		if ok {
			return code
		}
		fmt.Fprintf(os.Stderr, "tb-cluster: unknown sub-command %q\n%s", name, usage)
		return 2
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tb-cluster:", err)
		return 1
	}
	return 0
}

func run(args []string) error {
	flags := flag.NewFlagSet("run", flag.ExitOnError)
	var options controlplane.Options
	flags.StringVar(&options.Dir, "dir", "", "folder of the cluster")
	flags.StringVar(&options.ImageMap, "image-map", "", "file that maps images to programs")
	flags.StringVar(&options.AuditPolicy, "audit-policy", "", "file of an audit policy; what it asks for is written to DIR/logs/audit.log")
	flags.Func("api-server-arg", "one more flag of the API server; may be given again", func(arg string) error {
		options.APIServerArgs = append(options.APIServerArgs, arg)
		return nil
	})
	flags.StringVar(&options.MetricsServer, "metrics-server", "", "path of a metrics-server program to run as well")
	flags.StringVar(&options.Name, "name", "tokenbudget", "name of the node")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := absolute(&options.Dir, &options.ImageMap); err != nil {
		return err
	}
	// The supervisor carries the cluster's marker, too, and can get it into
	// its environment only by starting anew.
	if os.Getenv(proc.ClusterVariable) != options.Dir {
		if err := os.Setenv(proc.ClusterVariable, options.Dir); err != nil {
			return err
		}
		return fmt.Errorf("starting anew: %w", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return controlplane.Run(ctx, options, os.Stdout)
}

func down(args []string) error {
	flags := flag.NewFlagSet("down", flag.ExitOnError)
	dir := flags.String("dir", "", "folder of the cluster")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := absolute(dir); err != nil {
		return err
	}
	return controlplane.Down(*dir)
}

func runNode(args []string) error {
	flags := flag.NewFlagSet(controlplane.NodeSubcommand, flag.ExitOnError)
	var config node.Config
	flags.StringVar(&config.Name, "name", "", "name of the node")
	flags.StringVar(&config.ClusterDir, "dir", "", "folder of the cluster")
	flags.StringVar(&config.Kubeconfig, "kubeconfig", "", "how to reach the API server")
	flags.StringVar(&config.ImageMap, "image-map", "", "file that maps images to programs")
	flags.StringVar(&config.PodSubnet, "pod-subnet", "", "addresses of pods")
	flags.IntVar(&config.Port, "port", 0, "port of the kubelet's API")
	flags.IntVar(&config.APIServerPort, "api-server-port", 0, "port of the API server for pods")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return node.Run(ctx, config)
}

// absolute makes paths absolute; each is required.
func absolute(paths ...*string) error {
	for _, path := range paths {
		if *path == "" {
			return errors.New("a required flag is missing, see tb-cluster help")
		}
		full, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = full
	}
	return nil
}
