package pod

import "time"

// The kubelet's times between two starts of a container that keeps ending.
const (
	firstBackoff   = 10 * time.Second
	longestBackoff = 5 * time.Minute
	// A container that ran for this long starts anew.
	backoffReset = 10 * time.Minute
)

// backoff says how long to wait before a container is started again: not at
// all the first time, then longer and longer.
type backoff struct {
	delay time.Duration
}

// next is the time to wait after a run that took ran.
func (b *backoff) next(ran time.Duration) time.Duration {
	if ran >= backoffReset {
		b.delay = 0
	}
	wait := b.delay
	b.delay = min(max(2*b.delay, firstBackoff), longestBackoff)
	return wait
}
