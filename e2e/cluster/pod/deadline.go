package pod

import (
	"context"
	"sync"
	"time"
)

// deadline is a point in time that can come nearer but not recede.
type deadline struct {
	mu      sync.Mutex
	at      time.Time
	timer   *time.Timer
	expired chan struct{}
}

// newDeadline makes a deadline that is reached after d.
func newDeadline(d time.Duration) *deadline {
	l := &deadline{at: time.Now().Add(d), expired: make(chan struct{})}
	l.timer = time.AfterFunc(d, func() { close(l.expired) })
	return l
}

// shorten moves the deadline to d from now unless it is nearer already.
func (l *deadline) shorten(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now().Add(d)
	if at.Before(l.at) && l.timer.Stop() {
		l.at = at
		l.timer.Reset(d)
	}
}

// context is a child of parent that ends at the deadline.
func (l *deadline) context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	go func() {
		select {
		case <-l.expired:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
