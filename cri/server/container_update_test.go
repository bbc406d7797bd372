package server

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAnUpdateOverlaysWhatItNames(t *testing.T) {
	type r = runtimeapi.LinuxContainerResources
	pages := func(size string, limit uint64) *runtimeapi.HugepageLimit {
		return &runtimeapi.HugepageLimit{PageSize: size, Limit: limit}
	}
	before := func() *r {
		return &r{
			CpuShares: 100, MemoryLimitInBytes: 64, CpusetCpus: "0", Unified: map[string]string{"a": "1", "b": "1"},
			HugepageLimits: []*runtimeapi.HugepageLimit{pages("2MB", 2), pages("1GB", 1)},
		}
	}
	for name, c := range map[string]struct {
		change *r
		want   func(*r)
	}{
		"nothing":       {&r{}, func(*r) {}},
		"no request":    {nil, func(*r) {}},
		"one number":    {&r{MemoryLimitInBytes: 128}, func(w *r) { w.MemoryLimitInBytes = 128 }},
		"no limit":      {&r{CpuQuota: -1}, func(w *r) { w.CpuQuota = -1 }},
		"one of a map":  {&r{Unified: map[string]string{"b": "2"}}, func(w *r) { w.Unified["b"] = "2" }},
		"one page size": {&r{HugepageLimits: []*runtimeapi.HugepageLimit{pages("2MB", 4)}}, func(w *r) { w.HugepageLimits[0].Limit = 4 }},
	} {
		was, want := before(), before()
		c.want(want)
		if got := mergeResources(was, c.change); !proto.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
		if !proto.Equal(was, before()) {
			t.Errorf("%s: what was before has changed", name)
		}
	}
	if got := mergeResources(nil, nil); got != nil {
		t.Errorf("from nothing: %v", got)
	}
}
