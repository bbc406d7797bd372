//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// The environment is read once: a failpoint must not cost a system call
// where it is not the one that was asked for.
var (
	target, after = parse(os.Getenv("BERTH_FAILPOINT"))
	trace         = os.Getenv("BERTH_FAILPOINT_TRACE")
	hits          atomic.Int64
)

func parse(spec string) (name string, n int64) {
	name, count, found := strings.Cut(spec, ":")
	if !found {
		return name, 1
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		panic("BERTH_FAILPOINT=" + spec + ": the count after the colon must be a positive number")
	}
	return name, n
}

// Hit marks a line at which a crash test may kill the process.
func Hit(name string) {
	if trace != "" {
		record(name)
	}
	if name == target && hits.Add(1) == after {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // SIGKILL is delivered asynchronously: do not run on
	}
}

// record appends in one write, so that lines of concurrent hits stay whole.
func record(name string) {
	f, err := os.OpenFile(trace, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic("BERTH_FAILPOINT_TRACE: " + err.Error())
	}
	defer f.Close()
	if _, err := f.WriteString(name + "\n"); err != nil {
		panic("BERTH_FAILPOINT_TRACE: " + err.Error())
	}
}
