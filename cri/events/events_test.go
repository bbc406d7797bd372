package events

import (
	"context"
	"errors"
	"strconv"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func event(n int) *runtimeapi.ContainerEventResponse {
	return &runtimeapi.ContainerEventResponse{ContainerId: strconv.Itoa(n)}
}

func TestEveryReaderSeesEveryEventInOrderFromItsSubscriptionOn(t *testing.T) {
	b := New(10)
	b.Publish(event(0))
	early := b.Subscribe()
	defer early.Close()
	b.Publish(event(1))
	late := b.Subscribe()
	defer late.Close()
	b.Publish(event(2))
	for _, c := range []struct {
		r    *Reader
		want []string
	}{{early, []string{"1", "2"}}, {late, []string{"2"}}} {
		for _, want := range c.want {
			e, err := c.r.Next(context.Background())
			if err != nil || e.ContainerId != want {
				t.Errorf("got %v, %v; want %s", e, err, want)
			}
		}
	}
}

func TestASlowReaderIsToldAndHoldsUpNobody(t *testing.T) {
	b := New(2)
	slow, quick := b.Subscribe(), b.Subscribe()
	defer slow.Close()
	defer quick.Close()
	for n := range 5 {
		b.Publish(event(n))
		if e, err := quick.Next(context.Background()); err != nil || e.ContainerId != strconv.Itoa(n) {
			t.Fatalf("quick reader got %v, %v", e, err)
		}
	}
	for _, want := range []string{"0", "1"} {
		if e, err := slow.Next(context.Background()); err != nil || e.ContainerId != want {
			t.Errorf("slow reader got %v, %v; want %s", e, err, want)
		}
	}
	if _, err := slow.Next(context.Background()); !errors.Is(err, ErrSlow) {
		t.Errorf("slow reader ended with %v", err)
	}
}

func TestAReaderStopsWaitingWithItsContext(t *testing.T) {
	b := New(1)
	r := b.Subscribe()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	r.Close()
	if b.Watched() {
		t.Error("a closed reader counts")
	}
}
