// Package node is the cluster's only node: it registers itself, runs the pods
// bound to it as processes and serves their logs and usage.
package node

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
)

// addressPool hands out the pod addresses of a subnet. It goes round so that
// an address rests before another pod gets it.
type addressPool struct {
	mu     sync.Mutex
	subnet netip.Prefix
	last   netip.Addr
	used   map[netip.Addr]bool
}

func newAddressPool(subnet string) (*addressPool, error) {
	prefix, err := netip.ParsePrefix(subnet)
	if err != nil {
		return nil, fmt.Errorf("pod subnet: %w", err)
	}
	return &addressPool{subnet: prefix.Masked(), last: prefix.Masked().Addr(), used: make(map[netip.Addr]bool)}, nil
}

// take claims the next free address.
func (p *addressPool) take() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	candidate := p.last
	for {
		candidate = candidate.Next()
		if !p.subnet.Contains(candidate) {
			candidate = p.subnet.Addr().Next()
		}
		if !p.used[candidate] {
			p.used[candidate], p.last = true, candidate
			return candidate.String(), nil
		}
		if candidate == p.last {
			return "", errors.New("no pod address is free")
		}
	}
}

// release gives an address back.
func (p *addressPool) release(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if parsed, err := netip.ParseAddr(address); err == nil {
		delete(p.used, parsed)
	}
}
