package leak

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func processes(s Scope) ([]Item, error) {
	pids, err := Processes(s)
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, pid := range pids {
		items = append(items, Item{Kind: "process", Key: command(pid), Detail: fmt.Sprintf("pid %d", pid)})
	}
	return items, nil
}

// Processes returns the process IDs that belong to the node: those with its
// tag in their environment, its directories in their command line, in its
// cgroups or in its network namespace, and the zombie children of these.
func Processes(s Scope) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	nodeNS := ""
	if s.NetNS != "" {
		if nodeNS, err = namespaceID(s.NetNS); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	mine := map[int]bool{}
	zombies := map[int]int{} // to parent
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if parent, zombie := zombieOf(dir); zombie {
			zombies[pid] = parent
		} else if s.ownsProcess(dir, nodeNS) {
			mine[pid] = true
		}
	}
	var pids []int
	for pid := range mine {
		pids = append(pids, pid)
	}
	for pid, parent := range zombies {
		if mine[parent] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// ownsProcess reads files of a process that may end meanwhile: what cannot be
// read does not match.
func (s Scope) ownsProcess(dir, nodeNS string) bool {
	if ns, err := os.Readlink(dir + "/ns/net"); err == nil && nodeNS != "" && ns == nodeNS {
		return true
	}
	if env, err := os.ReadFile(dir + "/environ"); err == nil && s.Tag != "" && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+s.Tag+"\x00")) {
		return true
	}
	if cmd, err := os.ReadFile(dir + "/cmdline"); err == nil && s.mentions(string(cmd)) {
		return true
	}
	groups, err := os.ReadFile(dir + "/cgroup")
	return err == nil && len(s.CgroupRoot) > 1 && strings.Contains(string(groups)+"\n", ":"+s.CgroupRoot+"/")
}

// namespaceID of a pinned namespace, in the form of the links in /proc/PID/ns.
func namespaceID(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", path, err)
	}
	return fmt.Sprintf("net:[%d]", st.Ino), nil
}

func zombieOf(dir string) (parent int, zombie bool) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, false
	}
	// The name in parentheses may hold anything, closing parentheses included.
	_, rest, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')'):]), " ")
	f := strings.Fields(rest)
	if len(f) < 2 || f[0] != "Z" {
		return 0, false
	}
	parent, err = strconv.Atoi(f[1])
	return parent, err == nil
}

func command(pid int) string {
	cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(cmd) == 0 {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return "[" + strings.TrimSpace(string(comm)) + "]"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
}

// files lists everything below the node's directories, but not what is mounted
// there.
func files(s Scope) ([]Item, error) {
	var items []Item
	for _, dir := range s.Dirs {
		device := deviceOf(os.Stat(dir))
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone while we looked, or never there
			}
			if err != nil {
				return err
			}
			if d.IsDir() && deviceOf(d.Info()) != device {
				return filepath.SkipDir
			}
			kind := ""
			if d.Type() != 0 {
				kind = d.Type().String()
			}
			items = append(items, Item{Kind: "file", Key: path, Detail: kind})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return items, nil
}

// deviceOf returns the file system's device, or 0 for what is gone.
func deviceOf(info fs.FileInfo, err error) uint64 {
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return uint64(st.Dev)
}
