package measure

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Spent is the CPU time in seconds that this machine's programs have used, by
// name, with that of their children that have ended. Under Total is that of the
// whole machine, of what has ended and of interrupts too.
type Spent map[string]float64

// Total is no program's name.
const Total = "all"

const kernelWorker = "kworker"

// SpentSoFar reads what was used until now.
func SpentSoFar() Spent {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		panic(err) // the pattern is ours
	}
	s := Spent{}
	for _, file := range files {
		if stat, err := os.ReadFile(file); err == nil { // otherwise it has just ended
			s.process(string(stat))
		}
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		panic(err) // it is always there
	}
	s.machine(string(stat))
	return s
}

// process adds what /proc/PID/stat says: user, system, and the children's.
func (s Spent) process(stat string) {
	name, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	program := stat[name+1 : end]
	if strings.HasPrefix(program, kernelWorker) {
		program = kernelWorker // the rest of its name says what it does now
	}
	for _, ticks := range fields[11:15] {
		s[program] += seconds(ticks)
	}
}

// machine takes the first line of /proc/stat: user, nice, system, idle, waiting
// for I/O, interrupts.
func (s Spent) machine(stat string) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	for _, i := range []int{1, 2, 3, 6, 7} {
		s[Total] += seconds(fields[i])
	}
}

// seconds of ticks, of which the kernel tells 100 a second.
func seconds(ticks string) float64 {
	n, err := strconv.ParseInt(ticks, 10, 64)
	if err != nil {
		panic("ticks " + ticks) // the format is the kernel's promise
	}
	return float64(n) / 100
}

// Since says who used how much after an earlier reading, the most first; nothing
// of those with less than a tenth of a second.
func (s Spent) Since(before Spent) string {
	used := func(name string) float64 { return s[name] - before[name] }
	var out []string
	for _, name := range slices.SortedFunc(maps.Keys(s), func(a, b string) int { return cmp.Or(cmp.Compare(used(b), used(a)), cmp.Compare(a, b)) }) {
		if used(name) >= 0.1 {
			out = append(out, fmt.Sprintf("%s %.1f", name, used(name)))
		}
	}
	return strings.Join(out, ", ")
}
