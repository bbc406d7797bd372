package dispatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/internal/fakehost"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/worker"
)

// BenchmarkAPodsLife is what the agent itself costs from a pod's coming to its
// going, on a runtime that takes no time: decisions, status, files.
func BenchmarkAPodsLife(b *testing.B) {
	log, dir := slog.New(slog.DiscardHandler), b.TempDir()
	events, err := event.Open(event.Config{Path: filepath.Join(dir, "events"), Keep: 1000, Log: log})
	if err != nil {
		b.Fatal(err)
	}
	defer events.Close()
	kept, err := checkpoint.Open(filepath.Join(dir, "kept"))
	if err != nil {
		b.Fatal(err)
	}
	r := fakecri.New()
	r.HasImages("busybox")
	var d *dispatch.Dispatcher
	store := observed.New(observed.Config{Runtime: r, Relist: time.Hour, Log: log, Changed: func(uid string) { d.Observed(uid) }})
	ready := make(chan struct{}, 1)
	d = dispatch.New(dispatch.Config{
		Parts: worker.Parts{
			Actor: act.New(act.Parts{
				Sandboxes: r, Containers: r, Images: images.New(r, events, images.Config{}), Volumes: &fakehost.Volumes{},
				Objects: fakehost.NoObjects{}, Cgroups: &fakehost.Cgroups{}, Hooks: &fakehost.Hooks{}, Logs: fakehost.Logs{}, Events: events,
			}, act.Config{
				Node:     podspec.Node{PodLogsDir: filepath.Join(dir, "logs"), KubeletDir: filepath.Join(dir, "kubelet")},
				Parallel: 4, RuntimeTimeout: time.Minute, Log: log,
			}),
			Observations: store, Events: events, Checkpoints: kept,
		},
		Worker: worker.Config{Backoff: plan.KubeletBackoff, Log: log, Report: func(r worker.Report) {
			for _, c := range r.Pod.Status.Conditions {
				if c.Type == v1.PodReady && c.Status == v1.ConditionTrue {
					select {
					case ready <- struct{}{}:
					default:
					}
				}
			}
		}},
		Observations: store, Log: log,
	})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go func() { _ = store.Run(ctx) }()
	go func() { _ = d.Run(ctx) }()
	d.Want(ctx, dispatch.Desired{Complete: true, Local: true})
	<-d.InControl()

	var up time.Duration
	n := 0
	for b.Loop() {
		n++
		p := pod("web", fmt.Sprint(n))
		began := time.Now()
		d.Want(ctx, dispatch.Desired{Pods: []*v1.Pod{p}, Complete: true, Local: true, At: began})
		<-ready
		up += time.Since(began)
		d.Want(ctx, dispatch.Desired{Complete: true, Local: true})
		for len(d.Pods()) > 0 {
			runtime.Gosched()
		}
		select {
		case <-ready: // a later status of the pod that ended
		default:
		}
	}
	b.ReportMetric(float64(up.Microseconds())/float64(n), "µs-to-ready/op")
}
