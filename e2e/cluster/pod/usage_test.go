package pod

import "testing"

func TestUsageCounterNeverFalls(t *testing.T) {
	var counter usageCounter
	for i, step := range []struct{ ticks, want uint64 }{{10, 10}, {25, 25}, {5, 25}, {8, 28}} {
		if got := counter.add(step.ticks); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
}
