package stats

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Processes lists the processes in a cgroup and below it. The list is empty
// for a cgroup that is gone.
func (r *Reader) Processes(path string) ([]int, error) {
	var mount string
	if r.host.Unified {
		mount = r.host.Mount("")
	} else {
		// Processes are in the same cgroup of every hierarchy.
		for _, controller := range []string{"pids", "memory", "cpuacct"} {
			if mount = r.host.Mount(controller); mount != "" {
				break
			}
		}
	}
	f, done := r.files()
	defer done()
	return f.processes(nil, filepath.Join(mount, path))
}

func (f *files) processes(pids []int, dir string) ([]int, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return pids, nil
		}
		return pids, fmt.Errorf("look at the cgroup %s: %w", dir, err)
	}
	// EOPNOTSUPP, which is not ok: the processes of a threaded cgroup are
	// listed in the cgroup above.
	data, ok := f.read(dir, "cgroup.procs")
	if f.err != nil {
		return pids, f.err
	}
	if ok {
		for _, field := range bytes.Fields(data) {
			// 0 is a process of another pid namespace: it counts, no more.
			if pid, err := strconv.Atoi(string(field)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	if st.Nlink == 2 {
		return pids, nil // the links of a directory count those below it
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pids, fmt.Errorf("list the cgroups below %s: %w", dir, err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if pids, err = f.processes(pids, filepath.Join(dir, e.Name())); err != nil {
			return pids, err
		}
	}
	return pids, nil
}

// OpenFiles is what processes hold open.
type OpenFiles struct {
	Files   int
	Sockets int
}

// maxFiles bounds how many open files are looked at to tell the sockets among
// them: it takes a system call for each.
const maxFiles = 10_000

// ErrTooMany means that nothing was counted, since that would take too long.
var ErrTooMany = fmt.Errorf("more than %d open files", maxFiles)

// Open counts what processes hold open. A process that has ended holds nothing.
func Open(pids []int) (OpenFiles, error) {
	var o OpenFiles
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		names, err := fileNames(dir, maxFiles-o.Files)
		if err != nil {
			return OpenFiles{}, err
		}
		o.Files += len(names)
		for _, name := range names {
			// An error means that it was closed meanwhile.
			if target, err := os.Readlink(dir + "/" + name); err == nil && strings.HasPrefix(target, "socket:") {
				o.Sockets++
			}
		}
	}
	return o, nil
}

// fileNames lists a process's open files; there are none when it has ended.
func fileNames(dir string, limit int) ([]string, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	// One more than allowed, to know whether there are more.
	names, err := d.Readdirnames(limit + 1)
	if len(names) > limit {
		return nil, ErrTooMany
	}
	if err != nil && len(names) == 0 {
		return nil, nil // no entries, or it has ended
	}
	return names, nil
}

// OpenFilesLimit is how many files a process may hold open.
func OpenFilesLimit(pid int) (uint64, error) {
	var l unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l); err != nil {
		return 0, fmt.Errorf("read the limit of open files of process %d: %w", pid, err)
	}
	return l.Cur, nil
}

// Device names a block device, /dev/sda, or MAJ:MIN when the kernel does not
// know it any more.
func Device(major, minor uint32) string {
	number := fmt.Sprintf("%d:%d", major, minor)
	data, err := os.ReadFile("/sys/dev/block/" + number + "/uevent")
	if err != nil {
		return number
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return "/dev/" + name
		}
	}
	return number
}
