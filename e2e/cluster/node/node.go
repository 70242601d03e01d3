package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/log"
	vklogv2 "github.com/virtual-kubelet/virtual-kubelet/log/klogv2"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/tokenbudget/tokenbudget/e2e/cluster/image"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/pod"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/proc"
	"github.com/tokenbudget/tokenbudget/e2e/cluster/volumes"
)

const (
	leaseSeconds = 40
	// A worker of the pod controller waits for each pod that is being removed.
	podWorkers = 128
)

// Config is what a node needs to know.
type Config struct {
	Name          string
	ClusterDir    string
	Kubeconfig    string
	ImageMap      string
	PodSubnet     string
	Port          int
	APIServerPort int
}

// Run runs the node until ctx ends and then ends the processes of all pods.
func Run(ctx context.Context, config Config) error {
	ctx = log.WithLogger(ctx, vklogv2.New(nil))
	restConfig, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return fmt.Errorf("loading the kubeconfig: %w", err)
	}
	restConfig.QPS = -1 // Tests want reactions at once.
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("creating the client: %w", err)
	}
	addresses, err := newAddressPool(config.PodSubnet)
	if err != nil {
		return err
	}
	// What outlives ctx for as long as pods need to end.
	background, finish := context.WithCancel(context.WithoutCancel(ctx))
	defer finish()

	factory := informers.NewSharedInformerFactory(client, 0)
	broadcaster := record.NewBroadcaster(record.WithContext(background))
	defer broadcaster.Shutdown()
	p := newProvider(background, &pod.Runtime{
		Client:        client,
		Recorder:      broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: config.Name}),
		Services:      factory.Core().V1().Services().Lister(),
		Volumes:       volumes.NewManager(client, capacity()),
		Images:        image.Map{Path: config.ImageMap},
		Spawner:       proc.NewSpawner(),
		ClusterDir:    config.ClusterDir,
		HostIP:        hostIP,
		APIServerPort: config.APIServerPort,
		Allocatable:   capacity(),
	}, addresses)
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	if err := p.watchVolumes(factory); err != nil {
		return err
	}
	pods := podInformers(client, config.Name)
	if err := p.watchReadiness(pods.Core().V1().Pods().Informer()); err != nil {
		return err
	}
	podController, err := newPodController(p, client, pods, factory)
	if err != nil {
		return err
	}
	nodeController, err := newNodeController(config, client)
	if err != nil {
		return err
	}
	factory.Start(background.Done())
	pods.Start(background.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("the cache of %s did not fill", kind)
		}
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return serve(ctx, net.JoinHostPort(hostIP, strconv.Itoa(config.Port)), p.handler())
	})
	group.Go(func() error { return podController.Run(ctx, podWorkers) })
	group.Go(func() error { return nodeController.Run(ctx) })
	klog.InfoS("Node started", "name", config.Name, "subnet", config.PodSubnet)
	err = group.Wait()
	p.shutdown()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func podInformers(client kubernetes.Interface, name string) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", name).String()
	}))
}

func newPodController(p *provider, client kubernetes.Interface, pods, factory informers.SharedInformerFactory) (*node.PodController, error) {
	limiter := func() workqueue.TypedRateLimiter[any] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[any](time.Millisecond, 5*time.Second)
	}
	controller, err := node.NewPodController(node.PodControllerConfig{
		PodClient:                            guardedPods{PodsGetter: client.CoreV1(), provider: p},
		PodInformer:                          pods.Core().V1().Pods(),
		EventRecorder:                        &record.FakeRecorder{}, // The workers record what a kubelet would.
		Provider:                             p,
		ConfigMapInformer:                    factory.Core().V1().ConfigMaps(),
		SecretInformer:                       factory.Core().V1().Secrets(),
		ServiceInformer:                      factory.Core().V1().Services(),
		SyncPodsFromKubernetesRateLimiter:    limiter(),
		DeletePodsFromKubernetesRateLimiter:  limiter(),
		SyncPodStatusFromProviderRateLimiter: limiter(),
		SkipDownwardAPIResolution:            true,
	})
	if err != nil {
		return nil, fmt.Errorf("creating the pod controller: %w", err)
	}
	return controller, nil
}

func newNodeController(config Config, client kubernetes.Interface) (*node.NodeController, error) {
	controller, err := node.NewNodeController(
		node.NaiveNodeProvider{}, object(config.Name, config.Port), client.CoreV1().Nodes(),
		node.WithNodeEnableLeaseV1(client.CoordinationV1().Leases(corev1.NamespaceNodeLease), leaseSeconds),
		node.WithNodeStatusUpdateInterval(10*time.Second),
	)
	if err != nil {
		return nil, fmt.Errorf("creating the node controller: %w", err)
	}
	return controller, nil
}

// watchReadiness has pods say again that they are ready when somebody else said that they are not.
func (p *provider) watchReadiness(pods cache.SharedIndexInformer) error {
	_, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, object any) {
			seen, ok := object.(*corev1.Pod)
			if !ok {
				return
			}
			if worker := p.worker(seen.Namespace, seen.Name); worker != nil && worker.Pod().UID == seen.UID {
				worker.Reconcile(seen.Status)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watching the readiness of pods: %w", err)
	}
	return nil
}

// watchVolumes brings the volumes of pods up to date when the objects that
// they show change.
func (p *provider) watchVolumes(factory informers.SharedInformerFactory) error {
	watch := func(informer cache.SharedIndexInformer, uses func(*corev1.Pod, string) bool) error {
		changed := func(object any) {
			name, err := cache.DeletionHandlingObjectToName(object)
			if err != nil {
				klog.ErrorS(err, "Watching the objects of volumes")
				return
			}
			for _, worker := range p.all() {
				if object := worker.Pod(); object.Namespace == name.Namespace && uses(object, name.Name) {
					worker.RefreshVolumes()
				}
			}
		}
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    changed,
			UpdateFunc: func(_, object any) { changed(object) },
			DeleteFunc: changed,
		})
		return err
	}
	if err := watch(factory.Core().V1().ConfigMaps().Informer(), volumes.UsesConfigMap); err != nil {
		return fmt.Errorf("watching ConfigMaps: %w", err)
	}
	if err := watch(factory.Core().V1().Secrets().Informer(), volumes.UsesSecret); err != nil {
		return fmt.Errorf("watching Secrets: %w", err)
	}
	return nil
}
