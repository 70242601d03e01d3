package pod

import (
	"testing"
	"time"
)

func TestBackoffGrowsAndResets(t *testing.T) {
	var b backoff
	steps := []struct{ ran, want time.Duration }{
		{time.Second, 0},
		{time.Second, 10 * time.Second},
		{time.Second, 20 * time.Second},
		{time.Second, 40 * time.Second},
		{time.Second, 80 * time.Second},
		{time.Second, 160 * time.Second},
		{time.Second, 5 * time.Minute},
		{time.Second, 5 * time.Minute},
		{backoffReset, 0},
		{time.Second, 10 * time.Second},
	}
	for i, step := range steps {
		if got := b.next(step.ran); got != step.want {
			t.Errorf("step %d: waits %s, want %s", i, got, step.want)
		}
	}
}
