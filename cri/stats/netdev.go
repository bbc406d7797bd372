package stats

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/ns"
)

// Network is one reading of a network namespace.
type Network struct {
	At         time.Time
	Interfaces []Interface // all but the loopback interface
	Err        error       // ErrGone when the namespace is not there
}

// Networks reads the network namespaces pinned at paths, as their pods see
// them. It takes one thread for all of them, and no process.
func Networks(paths []string) []Network {
	list := make([]Network, len(paths))
	if len(paths) == 0 {
		return list
	}
	errs := ns.DoEach(paths, func(i int) error {
		// This thread's view: /proc/self is that of the main thread.
		data, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return fmt.Errorf("read the network interfaces of %s: %w", paths[i], err)
		}
		list[i].At = time.Now()
		list[i].Interfaces, err = netDev(data)
		return err
	})
	for i, err := range errs {
		// What is left of a pin that was removed is no namespace (EINVAL).
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
			err = ErrGone
		}
		list[i].Err = err
	}
	return list
}
