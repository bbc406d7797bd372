package enter

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// environment is what the program gets: of variables that are there twice the
// last, and HOME from the container's passwd file where nobody has set it. What
// runc refuses is refused.
func environment(env []string, uid uint32) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for _, entry := range slices.Backward(env) {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" || strings.IndexByte(entry, 0) >= 0 {
			return nil, fmt.Errorf("the environment variable %q is not valid", name)
		}
		if seen[name] || (name == "HOME" && value == "") {
			continue
		}
		seen[name] = true
		out = append(out, entry)
	}
	slices.Reverse(out)
	if seen["HOME"] {
		return out, nil
	}
	home, err := homeOf(uid)
	if err != nil {
		return nil, err
	}
	return append(out, "HOME="+home), nil
}

const (
	passwdFile = "/etc/passwd"
	maxPasswd  = 1 << 20
)

// homeOf is a user's home directory; / for one that the container does not know.
func homeOf(uid uint32) (string, error) {
	// It may be anything, a pipe that nobody writes to among it.
	fd, err := unix.Open(passwdFile, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return "/", nil
	}
	if err != nil {
		return "", fmt.Errorf("open the container's %s: %w", passwdFile, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("look at the container's %s: %w", passwdFile, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxPasswd {
		return "", fmt.Errorf("the container's %s is no file of at most 1 MiB", passwdFile)
	}
	return findHome(descriptor(fd), uid)
}

func findHome(passwd io.Reader, uid uint32) (string, error) {
	want := strconv.FormatUint(uint64(uid), 10)
	lines := bufio.NewScanner(io.LimitReader(passwd, maxPasswd))
	for lines.Scan() {
		// name:password:UID:GID:comment:home:shell
		if f := strings.Split(strings.TrimSpace(lines.Text()), ":"); len(f) > 5 && f[2] == want {
			return f[5], nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read the container's %s: %w", passwdFile, err)
	}
	return "/", nil
}

// descriptor reads a file that Go's poller has nothing to do with.
type descriptor int

func (d descriptor) Read(p []byte) (int, error) {
	n, err := unix.Read(int(d), p)
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
		if executable(path) {
			return path, nil
		}
	}
	return "", errNotFound
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
