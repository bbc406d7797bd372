package leak

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// defaultDirs are where a node that ignored its configuration would mount.
var defaultDirs = regexp.MustCompile(`^(/var)?/run/(berth|cni|runc)\b|^/var/lib/(berth|kubelet|cni)\b|^/var/log/(pods|containers)\b`)

func mounts(s Scope) ([]Item, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var items []Item
	for line := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if len(b) < 5 || len(a) < 2 {
			return nil, fmt.Errorf("/proc/self/mountinfo: unknown line %q", line)
		}
		point := unescape(b[4])
		if s.Machine || s.owns(point) || s.mentions(line) || defaultDirs.MatchString(point) {
			items = append(items, Item{Kind: "mount", Key: point, Detail: a[0] + " " + a[1]})
		}
	}
	return items, nil
}

var escapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescape(path string) string { return escapes.Replace(path) }

// namedNamespaces are those that ip netns would list. Pinned ones elsewhere
// are mounts, and unpinned ones belong to processes.
func namedNamespaces(s Scope) ([]Item, error) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var items []Item
	for _, e := range entries {
		if s.Machine || strings.HasPrefix(e.Name(), "cni-") || strings.HasPrefix(e.Name(), "berth") {
			items = append(items, Item{Kind: "netns", Key: "/run/netns/" + e.Name()})
		}
	}
	return items, nil
}

func links(s Scope) ([]Item, error) {
	root, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	defer root.Close()
	items, err := linksOf(root, "host", func(name string) bool { return s.Machine || strings.HasPrefix(name, "berth") })
	if err != nil || s.NetNS == "" {
		return items, err
	}
	ns, err := netns.GetFromPath(s.NetNS)
	if err != nil {
		return items, fmt.Errorf("open %s: %w", s.NetNS, err)
	}
	defer ns.Close()
	node, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return items, fmt.Errorf("list links of %s: %w", s.NetNS, err)
	}
	defer node.Close()
	inNode, err := linksOf(node, "node", func(string) bool { return true })
	return append(items, inNode...), err
}

func linksOf(h *netlink.Handle, where string, want func(string) bool) ([]Item, error) {
	list, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links of %s: %w", where, err)
	}
	var items []Item
	for _, l := range list {
		if want(l.Attrs().Name) {
			items = append(items, Item{Kind: "link", Key: where + " " + l.Attrs().Name, Detail: l.Type()})
		}
	}
	return items, nil
}

// cgroups lists the groups below the node's root in every hierarchy, and the
// names that a node uses by default directly below the top.
func cgroups(s Scope) ([]Item, error) {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, top := range hierarchies {
		list, err := filepath.Glob(top + "/kubepods*")
		if err != nil {
			return nil, err
		}
		if s.CgroupRoot != "" && s.CgroupRoot != "/" {
			list = append(list, filepath.Join(top, s.CgroupRoot))
		}
		for _, dir := range list {
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // gone while we looked
				}
				if err == nil && d.IsDir() {
					items = append(items, Item{Kind: "cgroup", Key: strings.TrimPrefix(path, top), Detail: filepath.Base(top)})
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return items, nil
}

func cgroupMounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var tops []string
	for line := range strings.Lines(string(data)) {
		before, after, _ := strings.Cut(line, " - ")
		if b := strings.Fields(before); strings.HasPrefix(after, "cgroup") && len(b) > 4 && strings.HasPrefix(b[4], "/sys/fs/cgroup") {
			tops = append(tops, b[4])
		}
	}
	return tops, nil
}

// rules lists the packet filter of the node's namespace, each line with the
// table and chain it stands in, without counters.
func rules(s Scope) ([]Item, error) {
	if s.NetNS == "" {
		return nil, nil
	}
	var stderr bytes.Buffer
	cmd := exec.Command("nsenter", "--net="+s.NetNS, "nft", "-s", "list", "ruleset")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("nft list ruleset in %s: %w: %s", s.NetNS, err, stderr.String())
	}
	var items []Item
	var path []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case line == "}":
			path = path[:len(path)-1]
		case strings.HasSuffix(line, "{"):
			path = append(path, strings.TrimSuffix(line, " {"))
			items = append(items, Item{Kind: "rule", Key: strings.Join(path, " ")})
		default:
			items = append(items, Item{Kind: "rule", Key: strings.Join(path, " ") + ": " + line})
		}
	}
	legacy, err := exec.Command("nsenter", "--net="+s.NetNS, "cat", "/proc/net/ip_tables_names").Output()
	if err != nil {
		return items, nil // the kernel has no legacy tables
	}
	for _, name := range strings.Fields(string(legacy)) {
		items = append(items, Item{Kind: "rule", Key: "legacy iptables table " + name})
	}
	return items, nil
}

// bpfObjects are the machine's, since BPF knows no namespaces. Without
// Machine only named objects of Berth count: runc's device filters of other
// nodes come and go.
func bpfObjects(s Scope) ([]Item, error) {
	var items []Item
	add := func(kind, name string) {
		if s.Machine || strings.HasPrefix(name, "berth") {
			items = append(items, Item{Kind: "bpf", Key: kind + " " + name})
		}
	}
	for id, err := ebpf.ProgramGetNextID(0); ; id, err = ebpf.ProgramGetNextID(id) {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			return nil, fmt.Errorf("list BPF programs: %w", err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone while we looked
		}
		if info, err := p.Info(); err == nil {
			add("program "+info.Type.String(), info.Name)
		}
		p.Close()
	}
	for id, err := ebpf.MapGetNextID(0); err == nil; id, err = ebpf.MapGetNextID(id) {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		if info, err := m.Info(); err == nil {
			add("map "+info.Type.String(), info.Name)
		}
		m.Close()
	}
	var it link.Iterator
	defer it.Close()
	for it.Next() {
		if info, err := it.Link.Info(); err == nil && s.Machine {
			add(fmt.Sprintf("link %v", info.Type), fmt.Sprint(info.Program))
		}
		it.Link.Close()
	}
	return items, nil
}
