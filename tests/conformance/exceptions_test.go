package main

import (
	"testing"

	"github.com/berth-io/berth/tests/ginkgo"
)

func TestEveryExceptionHasAReason(t *testing.T) {
	if _, err := ginkgo.LoadExceptions(exceptions); err != nil {
		t.Error(err)
	}
}
