package stats

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// defaultInterface is the one whose numbers stand for all, as the kubelet's
// defaultNetworkInterfaceName.
const defaultInterface = "eth0"

func (c *Collector) proc(path string) string { return filepath.Join("/", c.config.Host, "proc", path) }

// node is the root cgroup, with what the kernel only tells of the host.
func (c *Collector) node() (statsapi.ContainerStats, error) {
	u, err := readCgroup(at("/"))
	if err != nil {
		return statsapi.ContainerStats{}, err
	}
	info, err := c.meminfo()
	if err != nil {
		return statsapi.ContainerStats{}, err
	}
	u.limit = info["MemTotal"]
	u.hasSwap, u.swapLimit = true, info["SwapTotal"]
	u.swap = minus(info["SwapTotal"], info["SwapFree"])
	// The root cgroup of v1 has no pressure; the host has.
	for name, p := range map[string]**cgroups.PSIStats{"cpu": &u.cpuPressure, "memory": &u.memoryPressure, "io": &u.ioPressure} {
		if *p == nil {
			*p = c.hostPressure(name)
		}
	}
	s := c.container("node", u)
	free := info["SwapFree"]
	s.Swap.SwapAvailableBytes = &free
	s.StartTime = c.bootTime()
	return s, nil
}

// hostPressure reads /proc/pressure; nil on a kernel without it.
func (c *Collector) hostPressure(resource string) *cgroups.PSIStats {
	data, err := os.ReadFile(c.proc("pressure/" + resource))
	if err != nil {
		return nil
	}
	return parsePressure(data)
}

// parsePressure reads lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=0".
func parsePressure(data []byte) *cgroups.PSIStats {
	var p cgroups.PSIStats
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		to := map[string]*cgroups.PSIData{"some": &p.Some, "full": &p.Full}
		if len(f) == 0 || to[f[0]] == nil {
			continue
		}
		for _, field := range f[1:] {
			name, text, _ := strings.Cut(field, "=")
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				continue // of a kernel to come
			}
			switch d := to[f[0]]; name {
			case "avg10":
				d.Avg10 = n
			case "avg60":
				d.Avg60 = n
			case "avg300":
				d.Avg300 = n
			case "total":
				d.Total = uint64(n)
			}
		}
	}
	return &p
}

// meminfo is /proc/meminfo in bytes.
func (c *Collector) meminfo() (map[string]uint64, error) {
	data, err := os.ReadFile(c.proc("meminfo"))
	if err != nil {
		return nil, fmt.Errorf("read the node's memory: %w", err)
	}
	return parseMeminfo(data), nil
}

func parseMeminfo(data []byte) map[string]uint64 {
	info := map[string]uint64{}
	for line := range bytes.Lines(data) {
		name, rest, _ := strings.Cut(string(line), ":")
		f := strings.Fields(rest)
		if len(f) == 2 && f[1] == "kB" {
			if n, err := strconv.ParseUint(f[0], 10, 53); err == nil {
				info[name] = n << 10
			}
		}
	}
	return info
}

// bootTime is zero where the host does not tell, as the kubelet's.
func (c *Collector) bootTime() metav1.Time {
	data, err := os.ReadFile(c.proc("stat"))
	if err != nil {
		return metav1.Time{}
	}
	for line := range bytes.Lines(data) {
		if text, ok := strings.CutPrefix(string(line), "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil {
				return metav1.NewTime(time.Unix(n, 0))
			}
		}
	}
	return metav1.Time{}
}

// network reads the interfaces of the host's network namespace.
func (c *Collector) network(at metav1.Time) (*statsapi.NetworkStats, error) {
	data, err := os.ReadFile(c.proc("net/dev"))
	if err != nil {
		return nil, fmt.Errorf("read the node's interfaces: %w", err)
	}
	s := &statsapi.NetworkStats{Time: at, Interfaces: parseInterfaces(data)}
	for _, i := range s.Interfaces {
		if i.Name == defaultInterface {
			s.InterfaceStats = i
		}
	}
	return s, nil
}

// ignored are the interfaces that cAdvisor leaves out (isIgnoredDevice of
// container/libcontainer and utils/sysinfo): loopback and the host's ends of
// pod networks.
func ignored(name string) bool {
	return name == "lo" || strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "docker")
}

// parseInterfaces reads /proc/net/dev: two lines of heading, then
// "name: bytes packets errors ..." for receiving and, from the ninth number on,
// for sending.
func parseInterfaces(data []byte) []statsapi.InterfaceStats {
	var out []statsapi.InterfaceStats
	for line := range bytes.Lines(data) {
		name, rest, ok := strings.Cut(string(line), ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || len(f) < 11 || ignored(name) {
			continue
		}
		s := statsapi.InterfaceStats{Name: name}
		for at, to := range map[int]**uint64{0: &s.RxBytes, 2: &s.RxErrors, 8: &s.TxBytes, 10: &s.TxErrors} {
			if n, err := strconv.ParseUint(f[at], 10, 64); err == nil {
				*to = &n
			}
		}
		out = append(out, s)
	}
	return out
}

// rlimit tells how many tasks there are and may be, as the kubelet's
// pidlimit.Stats: the smaller of pid_max and threads-max.
func (c *Collector) rlimit(at metav1.Time) (*statsapi.RlimitStats, error) {
	s := &statsapi.RlimitStats{Time: at}
	for _, name := range []string{"sys/kernel/pid_max", "sys/kernel/threads-max"} {
		data, err := os.ReadFile(c.proc(name))
		if err != nil {
			continue // not there on every kernel
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		if err == nil && (s.MaxPID == nil || n < *s.MaxPID) {
			s.MaxPID = &n
		}
	}
	data, err := os.ReadFile(c.proc("loadavg"))
	if err != nil {
		return nil, fmt.Errorf("count the node's processes: %w", err)
	}
	// "0.20 0.18 0.12 1/80 11206": the fourth is running/all tasks.
	f := strings.Fields(string(data))
	if len(f) > 3 {
		_, all, _ := strings.Cut(f[3], "/")
		if n, err := strconv.ParseInt(all, 10, 64); err == nil {
			s.NumOfRunningProcesses = &n
		}
	}
	return s, nil
}

// imageFs is what images and writable layers take, as the runtime says, on the
// file systems that they are on.
func (c *Collector) imageFs(ctx context.Context) (*statsapi.RuntimeStats, error) {
	r, err := c.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the runtime for its image file system: %w", err)
	}
	if len(r.GetImageFilesystems()) == 0 {
		return nil, fmt.Errorf("ask the runtime for its image file system: it names none")
	}
	s := &statsapi.RuntimeStats{ImageFs: c.fsUsage(ctx, r.GetImageFilesystems()[0])}
	s.ContainerFs = s.ImageFs
	if fs := r.GetContainerFilesystems(); len(fs) > 0 && fs[0].GetFsId().GetMountpoint() != r.GetImageFilesystems()[0].GetFsId().GetMountpoint() {
		s.ContainerFs = c.fsUsage(ctx, fs[0])
	}
	return s, nil
}

// fsUsage completes what the runtime says is used with what the file system has.
func (c *Collector) fsUsage(ctx context.Context, u *runtimeapi.FilesystemUsage) *statsapi.FsStats {
	s := &statsapi.FsStats{
		Time:      metav1.NewTime(time.Unix(0, u.GetTimestamp())),
		UsedBytes: value(u.GetUsedBytes()), InodesUsed: value(u.GetInodesUsed()),
	}
	if mount := u.GetFsId().GetMountpoint(); mount != "" {
		if sp, err := c.disk.fileSystem(ctx, mount); err == nil {
			sp.into(s)
		}
	}
	return s
}

// into adds what a file system has, whoever uses it.
func (sp space) into(s *statsapi.FsStats) {
	s.CapacityBytes, s.AvailableBytes = &sp.capacity, &sp.avail
	s.Inodes, s.InodesFree = &sp.inodes, &sp.inodesFree
}

// rootStats is a file system as a whole.
func rootStats(sp space) *statsapi.FsStats {
	used, inodes := minus(sp.capacity, sp.free), minus(sp.inodes, sp.inodesFree)
	s := &statsapi.FsStats{Time: metav1.NewTime(sp.at), UsedBytes: &used, InodesUsed: &inodes}
	sp.into(s)
	return s
}
