// Package measure has what benchmarks need to say what they measured: series of
// durations, and the memory of processes.
package measure

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Series are durations of one thing, in milliseconds.
type Series []float64

// Add takes in one more.
func (s *Series) Add(ms float64) { *s = append(*s, ms) }

// Percentile returns the value that p of a hundred are not above, and 0 for an
// empty series.
func (s Series) Percentile(p int) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// Milliseconds is a duration as a Series has it.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// PSS of a process in KiB: its memory, what it shares divided by those who
// share it. 0 when it has ended.
func PSS(pid int) int { return kib(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") }

// RSS of a process in KiB, 0 when it has ended.
func RSS(pid int) int { return kib(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:") }

// kib reads a line "Name:   123 kB".
func kib(file, name string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			v, err := strconv.Atoi(f[1])
			if err == nil {
				return v
			}
		}
	}
	return 0
}

// CPU is the time in seconds that the threads of a process have used, of those
// that have not ended. It asks the scheduler for nanoseconds, since a hundred
// processes can hide a second in the ticks that each has not yet filled.
func CPU(pid int) (seconds float64) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		panic(err) // the pattern is ours
	}
	for _, file := range threads {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		run, _, _ := strings.Cut(string(stat), " ")
		ns, err := strconv.ParseInt(run, 10, 64)
		if err != nil {
			panic(file + ": " + string(stat)) // the format is the kernel's promise
		}
		seconds += float64(ns) / 1e9
	}
	return seconds
}

// Machine says what was measured on.
func Machine() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d CPUs, Linux %s", runtime.NumCPU(), strings.TrimSpace(string(release)))
}
