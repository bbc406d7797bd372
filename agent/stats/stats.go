// Package stats measures the node and its pods for the kubelet's summary API
// (k8s.io/kubelet/pkg/apis/stats/v1alpha1). It owns no state but the samples
// that rates are reckoned from and a cache of walked directories: everything
// is read when somebody asks, nothing is polled.
//
// Containers and pods are what the runtime says of them. The node, its system
// containers and pods of a runtime without pod statistics are read from
// cgroups and /proc; disk use is walked.
//
//	stats.go    what is put together
//	pods.go     from the CRI's numbers to the summary's
//	cgroup.go   CPU, memory, swap and pressure of a cgroup
//	node.go     what only the host has: network, file systems, processes
//	volumes.go  volumes and ephemeral storage of pods
//	disk.go     file systems and directories, walked and cached
//	rate.go     from cumulative CPU time to cores in use
package stats

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Runtime is the part of the CRI that measures pods.
type Runtime interface {
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error)
	ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error)
	ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest, ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error)
}

// Images is the part of the CRI that measures images.
type Images interface {
	ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest, ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error)
}

// Pods are the pods of this node: their volumes are named in their specification.
type Pods interface{ Pods() []*v1.Pod }

// Cgroups name the cgroups of pods (agent/qos.Tree).
type Cgroups interface {
	PodsPath() string
	PodPath(*v1.Pod) string
}

// Config of a Collector.
type Config struct {
	NodeName   string
	KubeletDir string // has pods/UID/volumes
	PodLogsDir string // has NAMESPACE_NAME_UID/CONTAINER
	// System names the cgroups of system containers: statsapi.SystemContainerKubelet,
	// SystemContainerRuntime, SystemContainerMisc. Where the first two are not in
	// it, this process's own cgroup is taken; an empty name is no system container.
	System map[string]string
	// DiskAge is how old a walked directory's size may be
	// (KubeletConfiguration.volumeStatsAggPeriod); zero is a minute.
	DiskAge time.Duration
	// ClaimVolume tells under which name a claim's volume is mounted in a pod
	// (the PersistentVolume's); nil: under the claim's own.
	ClaimVolume func(namespace, claim string) string
	// Host has the root of /proc and /sys; empty is "/". For tests.
	Host string
	Log  *slog.Logger
}

// Collector makes summaries. Its methods may be called concurrently.
type Collector struct {
	config  Config
	runtime Runtime
	images  Images
	pods    Pods
	cgroups Cgroups

	started time.Time
	rates   *rates
	disk    *disk
}

// New returns a Collector. It measures nothing yet.
func New(runtime Runtime, images Images, pods Pods, cgroups Cgroups, c Config) *Collector {
	if c.DiskAge <= 0 {
		c.DiskAge = time.Minute
	}
	return &Collector{
		config: c, runtime: runtime, images: images, pods: pods, cgroups: cgroups,
		started: time.Now(), rates: newRates(), disk: newDisk(c.DiskAge),
	}
}

// Summary measures everything. What cannot be measured of a pod, a volume or a
// system container is left out; what is missing of the node is an error.
func (c *Collector) Summary(ctx context.Context) (*statsapi.Summary, error) {
	s, layers, err := c.measure(ctx)
	if err != nil {
		return nil, err
	}
	at := metav1.Now()
	s.Node.StartTime = c.bootTime()
	if s.Node.Network, err = c.network(at); err != nil {
		return nil, err
	}
	root, err := c.disk.fileSystem(ctx, c.config.KubeletDir)
	if err != nil {
		return nil, fmt.Errorf("measure the node's file system: %w", err)
	}
	s.Node.Fs = rootStats(root)
	if s.Node.Runtime, err = c.imageFs(ctx); err != nil {
		return nil, err
	}
	if s.Node.Rlimit, err = c.rlimit(at); err != nil {
		return nil, err
	}
	known := map[string]*v1.Pod{}
	for _, pod := range c.pods.Pods() {
		known[string(pod.UID)] = pod
	}
	for i := range s.Pods {
		c.storage(ctx, &s.Pods[i], known[s.Pods[i].PodRef.UID], layers, root)
	}
	return s, nil
}

// CPUAndMemory measures only what an autoscaler asks for; no disk is touched.
func (c *Collector) CPUAndMemory(ctx context.Context) (*statsapi.Summary, error) {
	s, _, err := c.measure(ctx)
	return s, err
}

// measure also returns where the writable layers are.
func (c *Collector) measure(ctx context.Context) (*statsapi.Summary, layers, error) {
	node, err := c.node()
	if err != nil {
		return nil, nil, fmt.Errorf("measure the node: %w", err)
	}
	at := layers{}
	pods, err := c.podStats(ctx, at)
	if err != nil {
		return nil, nil, err
	}
	c.rates.forget(time.Now())
	return &statsapi.Summary{
		Node: statsapi.NodeStats{
			NodeName: c.config.NodeName, StartTime: node.StartTime,
			CPU: node.CPU, Memory: node.Memory, Swap: node.Swap, IO: node.IO,
			SystemContainers: c.systemContainers(),
		},
		Pods: pods,
	}, at, nil
}
