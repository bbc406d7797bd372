package machine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"k8s.io/utils/cpuset"
)

const (
	cpuDir  = "sys/devices/system/cpu"
	nodeDir = "sys/devices/system/node"
	// hugeDir has the machine's huge pages; a NUMA node's are in hugepages below
	// its directory.
	hugeDir = "sys/kernel/mm/hugepages"
	kib     = 1024
	// lastPrivateCache is the level of caches up to which cores do not share.
	lastPrivateCache = 2
)

// Read reads the machine from a root directory, os.DirFS("/") for this one.
func Read(root fs.FS) (*Info, error) {
	i := &Info{}
	var err error
	if i.MemoryBytes, err = memTotal(root, "proc/meminfo"); err != nil {
		return nil, err
	}
	if i.HugePages, err = hugePages(root, hugeDir); err != nil {
		return nil, err
	}
	if i.SwapBytes, err = swap(root); err != nil {
		return nil, err
	}
	if i.MaxPIDs, err = maxPIDs(root); err != nil {
		return nil, err
	}
	online, err := list(root, cpuDir+"/online")
	if err != nil {
		return nil, fmt.Errorf("find the machine's CPUs: %w", err)
	}
	ofNode, err := readNodes(root, i)
	if err != nil {
		return nil, err
	}
	return i, readCPUs(root, i, online, ofNode)
}

// readNodes reads the NUMA nodes and says which CPU is in which. A kernel
// without NUMA has one node with everything.
func readNodes(root fs.FS, i *Info) (map[int]int, error) {
	ofNode := map[int]int{}
	ids, err := list(root, nodeDir+"/online")
	if errors.Is(err, fs.ErrNotExist) {
		i.Nodes = []Node{{MemoryBytes: i.MemoryBytes, HugePages: i.HugePages}}
		return ofNode, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the machine's NUMA nodes: %w", err)
	}
	for _, id := range ids.List() {
		dir := fmt.Sprintf("%s/node%d", nodeDir, id)
		n := Node{ID: id}
		if n.MemoryBytes, err = memTotal(root, dir+"/meminfo"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if n.HugePages, err = hugePages(root, dir+"/hugepages"); err != nil {
			return nil, err
		}
		if n.Distances, err = distances(root, dir+"/distance"); err != nil {
			return nil, err
		}
		cpus, err := list(root, dir+"/cpulist")
		if err != nil {
			return nil, fmt.Errorf("find the CPUs of NUMA node %d: %w", id, err)
		}
		for _, cpu := range cpus.List() {
			ofNode[cpu] = id
		}
		i.Nodes = append(i.Nodes, n)
	}
	return ofNode, nil
}

func readCPUs(root fs.FS, i *Info, online cpuset.CPUSet, ofNode map[int]int) error {
	type core struct{ node, socket, id int }
	lowest := map[core]int{}
	perNode := map[int]int{}
	cores := map[int]core{}
	for _, id := range online.List() { // ascending: the first of a core is its lowest
		dir := fmt.Sprintf("%s/cpu%d/topology", cpuDir, id)
		c := core{node: ofNode[id]}
		var err error
		if c.id, err = number(root, dir+"/core_id"); err == nil {
			c.socket, err = number(root, dir+"/physical_package_id")
		}
		if err != nil {
			return fmt.Errorf("find where CPU %d is: %w", id, err)
		}
		// A virtual machine may not say; it is one socket then.
		c.socket = max(c.socket, 0)
		if _, known := lowest[c]; !known {
			lowest[c] = id
		}
		cores[id] = c
		perNode[c.node]++
	}
	for _, id := range online.List() {
		c := cores[id]
		cache, found, err := uncoreCache(root, id, perNode[c.node])
		if err != nil {
			return fmt.Errorf("find the caches of CPU %d: %w", id, err)
		}
		if !found {
			cache = c.socket
		}
		i.CPUs = append(i.CPUs, CPU{ID: id, Node: c.node, Socket: c.socket, Core: lowest[c], UncoreCache: cache})
	}
	if len(i.CPUs) == 0 {
		return errors.New("find the machine's CPUs: none is online")
	}
	return nil
}

// uncoreCache finds a cache beyond the private ones that is shared by fewer CPUs
// than the NUMA node has (as cAdvisor does, utils/sysinfo addCacheInfo).
func uncoreCache(root fs.FS, cpu, cpusOfNode int) (id int, found bool, err error) {
	dir := fmt.Sprintf("%s/cpu%d/cache", cpuDir, cpu)
	entries, err := fs.ReadDir(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil // many virtual machines
	}
	if err != nil {
		return 0, false, err
	}
	for _, entry := range entries {
		index := dir + "/" + entry.Name()
		if !strings.HasPrefix(entry.Name(), "index") {
			continue
		}
		level, err := number(root, index+"/level")
		if err != nil {
			return 0, false, err
		}
		if level <= lastPrivateCache {
			continue
		}
		shared, err := list(root, index+"/shared_cpu_list")
		if err != nil {
			return 0, false, err
		}
		if shared.Size() == cpusOfNode {
			continue
		}
		id, err := number(root, index+"/id")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return id, err == nil, err
	}
	return 0, false, nil
}

func distances(root fs.FS, path string) ([]uint64, error) {
	text, err := text(root, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var row []uint64
	for _, field := range strings.Fields(text) {
		d, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read /%s: %w", path, err)
		}
		row = append(row, d)
	}
	return row, nil
}

func hugePages(root fs.FS, dir string) (map[int64]int64, error) {
	pages := map[int64]int64{}
	entries, err := fs.ReadDir(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return pages, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find huge pages: %w", err)
	}
	for _, entry := range entries {
		size, isSize := strings.CutPrefix(entry.Name(), "hugepages-")
		size, hasUnit := strings.CutSuffix(size, "kB")
		kilobytes, err := strconv.ParseInt(size, 10, 64)
		if !isSize || !hasUnit || err != nil {
			continue
		}
		count, err := number(root, dir+"/"+entry.Name()+"/nr_hugepages")
		if err != nil {
			return nil, fmt.Errorf("count huge pages: %w", err)
		}
		pages[kilobytes*kib] = int64(count)
	}
	return pages, nil
}

// memTotal reads the MemTotal line, which a NUMA node's meminfo prefixes.
func memTotal(root fs.FS, path string) (int64, error) {
	content, err := fs.ReadFile(root, path)
	if err != nil {
		return 0, err
	}
	for scan := bufio.NewScanner(bytes.NewReader(content)); scan.Scan(); {
		_, value, found := strings.Cut(scan.Text(), "MemTotal:")
		if !found {
			continue
		}
		kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read MemTotal of /%s: %w", path, err)
		}
		return kilobytes * kib, nil
	}
	return 0, fmt.Errorf("read /%s: it has no MemTotal", path)
}

func swap(root fs.FS) (int64, error) {
	content, err := text(root, "proc/swaps")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // a kernel without swap
	}
	if err != nil {
		return 0, err
	}
	var total int64
	for n, line := range strings.Split(content, "\n") {
		fields := strings.Fields(line)
		if n == 0 || len(fields) < 3 {
			continue
		}
		kilobytes, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/swaps: %w", err)
		}
		total += kilobytes * kib
	}
	return total, nil
}

func maxPIDs(root fs.FS) (int64, error) {
	var least int64
	for _, file := range []string{"proc/sys/kernel/pid_max", "proc/sys/kernel/threads-max"} {
		limit, err := number(root, file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if least == 0 || int64(limit) < least {
			least = int64(limit)
		}
	}
	return least, nil
}

func list(root fs.FS, path string) (cpuset.CPUSet, error) {
	content, err := text(root, path)
	if err != nil {
		return cpuset.CPUSet{}, err
	}
	set, err := cpuset.Parse(content)
	if err != nil {
		return cpuset.CPUSet{}, fmt.Errorf("read /%s: %w", path, err)
	}
	if slices.ContainsFunc(set.List(), func(id int) bool { return id < 0 }) {
		return cpuset.CPUSet{}, fmt.Errorf("read /%s: unexpected %q", path, content)
	}
	return set, nil
}

func number(root fs.FS, path string) (int, error) {
	content, err := text(root, path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(content)
	if err != nil {
		return 0, fmt.Errorf("read /%s: %w", path, err)
	}
	return n, nil
}

func text(root fs.FS, path string) (string, error) {
	content, err := fs.ReadFile(root, path)
	return strings.TrimSpace(string(content)), err
}
