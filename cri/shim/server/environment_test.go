package server

import (
	"slices"
	"testing"
)

func TestTheRuntimeIsNotBoundAsTheShimIs(t *testing.T) {
	got := runtimeEnvironment([]string{"PATH=/bin", "GOMAXPROCS=1", "GOGC=20", "GOGCX=1"})
	if want := []string{"PATH=/bin", "GOGCX=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
