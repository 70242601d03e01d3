// Package components runs the upstream Kubernetes binaries that are linked
// into this one: etcd, the control plane and kubectl.
package components

import (
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // the JSON log format
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client-go's metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // the version metric
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// Names of the components, which are also the names of their sub-commands.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Kubectl           = "kubectl"
)

// Run runs the component called name with args and reports its exit code;
// ok is false when there is no such component.
func Run(name string, args []string) (code int, ok bool) {
	var command *cobra.Command
	switch name {
	case Etcd:
		os.Args = append([]string{Etcd}, args...)
		etcdmain.Main(os.Args)
		return 0, true
	case APIServer:
		command = apiserver.NewAPIServerCommand()
	case ControllerManager:
		command = controllermanager.NewControllerManagerCommand()
	case Scheduler:
		command = scheduler.NewSchedulerCommand()
	case Kubectl:
		// kubectl looks into os.Args for plugins and for its own name.
		os.Args = append([]string{Kubectl}, args...)
		command = kubectl.NewDefaultKubectlCommand()
	default:
		return 0, false
	}
	command.SetArgs(args)
	return cli.Run(command), true
}
