package pod

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadlineComesNearerButDoesNotRecede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		d := newDeadline(time.Minute)
		d.shorten(time.Hour)
		d.shorten(10 * time.Second)
		d.shorten(30 * time.Second)
		<-d.expired
		if took := time.Since(begun); took != 10*time.Second {
			t.Errorf("expired after %s, want 10s", took)
		}
		d.shorten(0)
	})
}

func TestDeadlineEndsItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := newDeadline(time.Second).context(context.Background())
		defer cancel()
		begun := time.Now()
		<-ctx.Done()
		if took := time.Since(begun); took != time.Second {
			t.Errorf("the context ended after %s, want 1s", took)
		}
	})
}
