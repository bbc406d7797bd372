package enter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// environment is what the program gets: of variables that are there twice the
// last, and HOME from the container's passwd file where nobody has set it. What
// runc refuses is refused.
func (d descriptors) environment(env []string, uid uint32) ([]string, error) {
	var out []string
	var home bool
	seen := map[string]bool{}
	for _, entry := range slices.Backward(env) {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" || strings.IndexByte(entry, 0) >= 0 {
			return nil, fmt.Errorf("the environment variable %q is not valid", name)
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		if name == "HOME" {
			if value == "" {
				continue
			}
			home = true
		}
		out = append(out, entry)
	}
	slices.Reverse(out)
	if home {
		return out, nil
	}
	dir, err := d.homeOf(uid)
	if err != nil {
		return nil, err
	}
	return append(out, "HOME="+dir), nil
}

const (
	passwdFile = "/etc/passwd"
	maxPasswd  = 1 << 20
)

// homeOf is a user's home directory; / for one that the container does not know.
//
// The file is the container's, which may have put anything in its place, and this
// process is not in the container's devices cgroup: nothing is opened before it is
// known to be a regular file.
func (d descriptors) homeOf(uid uint32) (string, error) {
	path, err := unix.Open(passwdFile, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return "/", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at the container's %s: %w", passwdFile, err)
	}
	defer unix.Close(path)
	var st unix.Stat_t
	if err := unix.Fstat(path, &st); err != nil {
		return "", fmt.Errorf("look at the container's %s: %w", passwdFile, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxPasswd {
		return "", fmt.Errorf("the container's %s is no file of at most 1 MiB", passwdFile)
	}
	file, err := d.reopen(path)
	if err != nil {
		return "", fmt.Errorf("open the container's %s: %w", passwdFile, err)
	}
	defer unix.Close(file)
	return findHome(reader(file), uid)
}

// findHome reads a passwd file as runc does.
func findHome(passwd io.Reader, uid uint32) (string, error) {
	found, err := user.ParsePasswdFilter(io.LimitReader(passwd, maxPasswd), func(u user.User) bool { return u.Uid == int(uid) })
	if err != nil {
		return "", fmt.Errorf("read the container's %s: %w", passwdFile, err)
	}
	if len(found) == 0 {
		return "/", nil
	}
	return found[0].Home, nil
}

// descriptors is the host's directory of this process's descriptors. It stays
// what it is when the process has entered a container, where /proc may be
// anything.
type descriptors int

func openDescriptors() (descriptors, error) {
	fd, err := unix.Open("/proc/self/fd", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the process's descriptors: %w", err)
	}
	return descriptors(fd), nil
}

func (d descriptors) close() { _ = unix.Close(int(d)) }

// reopen reads what an O_PATH descriptor names.
func (d descriptors) reopen(fd int) (int, error) {
	return unix.Openat(int(d), strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
}

// reader reads a file that Go's poller has nothing to do with.
type reader int

func (r reader) Read(p []byte) (int, error) {
	n, err := unix.Read(int(r), p)
	if err == nil && n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// errNotFound is a program that is not there, or that may not be executed.
var errNotFound = errors.New("the program is not found")

// programAt is the path of a program for execve(2): a name without a slash is
// looked for in the directories of PATH.
func programAt(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var dirs string
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			dirs = value
		}
	}
	for _, dir := range filepath.SplitList(dirs) {
		path := filepath.Join(dir, name)
		if !filepath.IsAbs(path) {
			return "", fmt.Errorf("%w: the directory %q of PATH is relative", errNotFound, dir)
		}
		switch ok, err := executable(path); {
		case err != nil:
			return "", err
		case ok:
			return path, nil
		}
	}
	return "", errNotFound
}

// executable looks as root. What root cannot see, the program's user might.
func executable(path string) (bool, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for the program: %w", err)
	}
	return st.Mode().IsRegular() && st.Mode()&0o111 != 0, nil
}
