// Package report is what a process sees of its container. testbox collects a
// Report from the inside and prints it as JSON; the scenarios decode it and
// compare it with what the manifest asked for.
package report

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Report is one process's view. Paths that cannot be read are left empty.
type Report struct {
	Args     []string          `json:"args"`
	Env      map[string]string `json:"env"`
	Dir      string            `json:"dir"`
	Hostname string            `json:"hostname"`
	Pid      int               `json:"pid"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	Groups   []int             `json:"groups"`

	Status     map[string]string   `json:"status"` // /proc/self/status
	Namespaces map[string]string   `json:"namespaces"`
	Mounts     []Mount             `json:"mounts"`
	Cgroups    map[string]string   `json:"cgroups"`    // /proc/self/cgroup by controller, "" for v2
	Interfaces map[string][]string `json:"interfaces"` // addresses in CIDR notation
	Processes  map[string]string   `json:"processes"`  // command name by pid, as seen here
	Devices    []string            `json:"devices"`    // names in /dev

	OOMScoreAdj string `json:"oomScoreAdj"`
	Hosts       string `json:"hosts"`
	Resolv      string `json:"resolv"`
	RootWrites  string `json:"rootWrites"` // the error of writing to /, or empty
}

// Mount is one line of /proc/self/mountinfo.
type Mount struct {
	Root    string `json:"root"`
	Point   string `json:"point"`
	Type    string `json:"type"`
	Source  string `json:"source"`
	Options string `json:"options"` // of the mount
	Super   string `json:"super"`   // of the file system
}

// Collect looks around.
func Collect() Report {
	r := Report{
		Args:       os.Args,
		Env:        map[string]string{},
		Pid:        os.Getpid(),
		UID:        os.Getuid(),
		GID:        os.Getgid(),
		Status:     keyValues("/proc/self/status", ":"),
		Namespaces: map[string]string{},
		Cgroups:    map[string]string{},
		Interfaces: map[string][]string{},
		Processes:  map[string]string{},
	}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		r.Env[k] = v
	}
	r.Dir, _ = os.Getwd()
	r.Hostname, _ = os.Hostname()
	r.Groups, _ = os.Getgroups()
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		r.Namespaces[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	for _, l := range lines("/proc/self/mountinfo") {
		r.Mounts = append(r.Mounts, parseMount(l))
	}
	for _, l := range lines("/proc/self/cgroup") {
		if f := strings.SplitN(l, ":", 3); len(f) == 3 {
			for _, c := range strings.Split(f[1], ",") {
				r.Cgroups[c] = f[2]
			}
		}
	}
	r.interfaces()
	for _, dir := range glob("/proc/[0-9]*") {
		r.Processes[filepath.Base(dir)] = read(dir + "/comm")
	}
	for _, dev := range glob("/dev/*") {
		r.Devices = append(r.Devices, filepath.Base(dev))
	}
	r.OOMScoreAdj = read("/proc/self/oom_score_adj")
	r.Hosts = read("/etc/hosts")
	r.Resolv = read("/etc/resolv.conf")
	if err := os.WriteFile("/written-by-report", nil, 0o600); err != nil {
		r.RootWrites = err.Error()
	}
	return r
}

// Parse reads the JSON that testbox prints.
func Parse(data []byte) (Report, error) {
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return Report{}, fmt.Errorf("parse report %.80q: %w", data, err)
	}
	return r, nil
}

// Mount returns what is mounted last on a path.
func (r Report) Mount(point string) (Mount, bool) {
	for i := len(r.Mounts) - 1; i >= 0; i-- {
		if r.Mounts[i].Point == point {
			return r.Mounts[i], true
		}
	}
	return Mount{}, false
}

// Has tells whether an option is set on the mount or its file system.
func (m Mount) Has(option string) bool {
	for _, o := range strings.Split(m.Options+","+m.Super, ",") {
		if o == option {
			return true
		}
	}
	return false
}

func (r *Report) interfaces() {
	links, err := net.Interfaces()
	if err != nil {
		return
	}
	for _, l := range links {
		r.Interfaces[l.Name] = []string{}
		addrs, err := l.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			r.Interfaces[l.Name] = append(r.Interfaces[l.Name], a.String())
		}
	}
}

// parseMount reads "36 35 98:0 /root /point rw,noatime opt... - ext4 /dev/x rw".
func parseMount(line string) Mount {
	before, after, _ := strings.Cut(line, " - ")
	b, a := strings.Fields(before), strings.Fields(after)
	if len(b) < 6 || len(a) < 3 {
		return Mount{}
	}
	return Mount{Root: b[3], Point: b[4], Options: b[5], Type: a[0], Source: a[1], Super: a[2]}
}

func keyValues(path, separator string) map[string]string {
	m := map[string]string{}
	for _, l := range lines(path) {
		k, v, _ := strings.Cut(l, separator)
		m[k] = strings.TrimSpace(v)
	}
	return m
}

func lines(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		out = append(out, s.Text())
	}
	return out
}

func read(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(data), "\n")
}

func glob(pattern string) []string {
	matches, _ := filepath.Glob(pattern) // the only error is a bad pattern
	return matches
}
