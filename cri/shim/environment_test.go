package shim

import (
	"slices"
	"testing"
)

func TestAShimGetsTheDaemonsEnvironmentAndItsOwnBounds(t *testing.T) {
	got := environment([]string{"PATH=/bin", "GOGC=400", "NOTIFY_SOCKET=/run/notify", "GOMAXPROCS=64", "HTTP_PROXY=p"})
	if want := []string{"PATH=/bin", "HTTP_PROXY=p", "GOMAXPROCS=1", "GOGC=20"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
