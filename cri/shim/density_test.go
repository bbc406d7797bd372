package shim

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestTheShortestProcessesKeepTheirExitCodes(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	b.run(c)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 25 {
				code := (worker*25 + i) % 200
				r, err := b.client.ExecSync(t.Context(), Process{
					ContainerID: c.ID, Spec: process("/bin/sh", "-c", fmt.Sprintf("echo %d; exit %d", code, code)),
				})
				if err != nil || r.ExitCode != code || string(r.Stdout) != strconv.Itoa(code)+"\n" {
					t.Errorf("exit %d: %+v, %v", code, r, err)
				}
			}
		})
	}
	for i := range 10 {
		short := b.bundle("", func(s *specs.Spec) { s.Process.Args = []string{"/bin/sh", "-c", fmt.Sprintf("exit %d", 100+i)} })
		b.run(short)
		if st := b.exit(short.ID); st.ExitCode != 100+i {
			t.Errorf("exit %d: %+v", 100+i, st)
		}
	}
	wg.Wait()
	if left, _ := filepath.Glob(filepath.Join(b.dir, "exec-*")); len(left) != 0 {
		t.Errorf("files left: %v", left)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test/" + c.ID + "/exec-*"); len(left) != 0 {
		t.Errorf("cgroups left: %v", left)
	}
}

// BenchmarkMemory starts shims with one idle container each, has each do an
// exec, and reports what a shim takes once it is quiet.
func BenchmarkMemory(b *testing.B) {
	const shims = 100
	runc := runcPath(b)
	base := b.TempDir()
	seed := &bed{t: b, dir: base, rootfs: filepath.Join(base, "rootfs")}
	if err := seed.makeRootfs(); err != nil {
		b.Skipf("skipped: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var clients []*Client
	defer func() {
		for _, c := range clients {
			states, _ := c.State(ctx)
			for _, st := range states {
				if err := c.Delete(ctx, st.ID); err != nil {
					b.Error(err)
				}
			}
			if err := c.Shutdown(ctx); err != nil {
				b.Error(err)
			}
			_ = c.Close()
			reap(c.Pid())
		}
		left, _ := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test")
		for _, dir := range append(left, "/sys/fs/cgroup/berth-shim-test") {
			_ = os.Remove(dir)
		}
	}()
	for i := range shims {
		dir := filepath.Join(base, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		c, err := Start(ctx, Sandbox{ID: strconv.Itoa(i), Dir: dir, Binary: shimBinary, Runtime: Runtime{
			Binary: runc, Root: filepath.Join(base, "runc"), Timeout: time.Minute,
		}})
		if err != nil {
			b.Fatal(err)
		}
		clients = append(clients, c)
		idle := seed.bundle("exec sleep 10000", nil)
		if _, err := c.Run(ctx, idle); err != nil {
			b.Fatal(err)
		}
		if _, err := c.ExecSync(ctx, Process{ContainerID: idle.ID, Spec: process("/bin/true")}); err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(5 * time.Second) // longer than a shim waits before it gives memory back
	before := cpuTime(b, clients)
	time.Sleep(10 * time.Second)
	idle := cpuTime(b, clients) - before
	var pss, private int
	for _, c := range clients {
		pss += rollup(b, c.Pid(), "Pss:")
		private += rollup(b, c.Pid(), "Private_Dirty:")
	}
	b.ReportMetric(0, "ns/op") // these numbers are of what stands, not of a loop
	b.ReportMetric(float64(pss)/shims, "PSS-kB/shim")
	b.ReportMetric(float64(private)/shims, "dirty-kB/shim")
	b.ReportMetric(float64(idle)*6/100, "idle-cpu-s/min")
}

// rollup is one line of smaps_rollup, in kB.
func rollup(b *testing.B, pid int, field string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); f[0] == field {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no %s of process %d", field, pid)
	return 0
}

// cpuTime of all shims, in ticks of 10 ms.
func cpuTime(b *testing.B, clients []*Client) (ticks int) {
	for _, c := range clients {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Pid()))
		if err != nil {
			b.Fatal(err)
		}
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		for _, field := range f[11:13] {
			n, err := strconv.Atoi(field)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	}
	return ticks
}
