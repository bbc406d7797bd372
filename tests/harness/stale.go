package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// A test process that is killed, or runs into go test's timeout, cannot clean
// up after itself. The next one does: each node's directory names its owner.
var sweepStaleOnce sync.Once

const (
	nodesDir   = "/var/tmp"
	namePrefix = "bh-"
	ownerFile  = "owner"
)

// Own notes in a directory that this process tears down what it is of.
func Own(dir string) error {
	self, err := ReadProcess(os.Getpid())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ownerFile), fmt.Appendf(nil, "%d %s", self.Pid, self.Start), 0o644)
}

// sweepStale removes the nodes of test processes that are gone.
func sweepStale(t TB) {
	sweepStaleOnce.Do(func() {
		dirs, err := filepath.Glob(filepath.Join(nodesDir, namePrefix+"*"))
		if err != nil {
			t.Fatalf("%v", err)
		}
		for _, dir := range dirs {
			if Owned(dir) {
				continue
			}
			name := filepath.Base(dir)
			n := &Node{t: t, node: &node{Name: name, Dir: dir, netns: &namespaces{node: name, outside: name + "-out"}}}
			n.Config = n.defaultConfig()
			t.Logf("removing %s, which a test that is gone left behind", name)
			for _, err := range n.sweep() {
				t.Logf("remove %s: %v", name, err)
			}
		}
	})
}

// Owned tells whether the process that called Own still runs. A directory
// without an owner is being made or removed just now.
func Owned(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return true
	}
	pid, start, _ := strings.Cut(string(data), " ")
	n, err := strconv.Atoi(pid)
	if err != nil {
		return true
	}
	p, err := ReadProcess(n)
	return err == nil && p.Start == start
}
