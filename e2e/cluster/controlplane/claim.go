package controlplane

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

const (
	// slots are how many clusters fit on one machine. Slot s has the ports
	// from firstPort+16*s, which are below those that Linux gives to clients,
	// and the pod subnet 127.(64+s/250).(1+s%250).0/24.
	slots        = 700
	firstPort    = 20000
	portsPerSlot = 16
)

// ports are where the cluster's processes listen on 127.0.0.1.
type ports struct {
	EtcdClient        int `json:"etcdClient"`
	EtcdPeer          int `json:"etcdPeer"`
	APIServer         int `json:"apiServer"`
	ControllerManager int `json:"controllerManager"`
	Scheduler         int `json:"scheduler"`
	Node              int `json:"node"`
	MetricsServer     int `json:"metricsServer"`
}

func (p ports) all() []int {
	return []int{p.EtcdClient, p.EtcdPeer, p.APIServer, p.ControllerManager, p.Scheduler, p.Node, p.MetricsServer}
}

// claim is a cluster's share of the machine's addresses.
type claim struct {
	ports  ports
	subnet string
	lock   *os.File
}

// takeClaim claims a free slot for as long as this process lives.
func takeClaim() (*claim, error) {
	locks := filepath.Join(os.TempDir(), "tokenbudget-clusters")
	if err := os.Mkdir(locks, 0o777); err == nil {
		// Other users claim here, too, whatever this one's umask says.
		err = os.Chmod(locks, 0o777|os.ModeSticky)
		if err != nil {
			return nil, fmt.Errorf("opening the folder of claims: %w", err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("creating the folder of claims: %w", err)
	}
	for _, slot := range rand.Perm(slots) {
		lock, err := lockFile(filepath.Join(locks, strconv.Itoa(slot)))
		if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, fs.ErrPermission) {
			continue // Another cluster's, or another user's.
		}
		if err != nil {
			return nil, err
		}
		c := newClaim(slot)
		if free(c.ports.all()) {
			c.lock = lock
			return c, nil
		}
		if err := lock.Close(); err != nil {
			return nil, fmt.Errorf("giving a claim back: %w", err)
		}
	}
	return nil, errors.New("no slot for another cluster is free")
}

func newClaim(slot int) *claim {
	base := firstPort + portsPerSlot*slot
	return &claim{
		ports: ports{
			EtcdClient: base, EtcdPeer: base + 1, APIServer: base + 2, ControllerManager: base + 3,
			Scheduler: base + 4, Node: base + 5, MetricsServer: base + 6,
		},
		subnet: fmt.Sprintf("127.%d.%d.0/24", 64+slot/250, 1+slot%250),
	}
}

// free tells whether nobody listens on the ports.
func free(ports []int) bool {
	for _, port := range ports {
		listener, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return false
		}
		if listener.Close() != nil {
			return false
		}
	}
	return true
}

// lockFile locks a file, which is created when absent, until it is closed or
// the process ends. EWOULDBLOCK means that another process holds it.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, fmt.Errorf("opening a lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), file.Close())
	}
	return file, nil
}
