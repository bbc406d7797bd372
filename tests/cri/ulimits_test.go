package cri

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// limitLines are what /proc/self/limits says of some limits, spaces squeezed.
func limitLines(text string, names ...string) []string {
	var found []string
	for line := range strings.Lines(text) {
		for _, name := range names {
			if strings.HasPrefix(line, name+" ") {
				found = append(found, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return found
}

func TestContainersAndTheirExecsHaveTheDefaultUlimits(t *testing.T) {
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) {
		c.DefaultUlimits = []string{"nofile=2000", "msgqueue=1000:2000", "core=0", "stack=-1"}
		c.SELinux.Enable = true // costs nothing, and labels nothing, where the kernel has none
	}})
	pod := r.podConfig("limits")
	sandbox := r.runPod(pod)
	c := r.containerConfig("main", "testbox", "pause")
	c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
	id := r.run(sandbox, pod, c)
	want := []string{
		"Max stack size unlimited unlimited bytes",
		"Max core file size 0 0 bytes",
		"Max open files 2000 2000 files",
		"Max msgqueue size 1000 2000 bytes",
	}
	for of, process := range map[string]string{"the container": "1", "an exec": "self"} {
		got := limitLines(r.exec(id, "cat", "/proc/"+process+"/limits"), "Max stack size", "Max core file size", "Max open files", "Max msgqueue size")
		equal(t, "limits of "+of, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}
