package reap

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// start makes this process a subreaper with a running Reaper. Nothing else in
// this test binary may have children.
func start(t *testing.T) *Reaper {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	r := New()
	children := make(chan os.Signal, 32)
	signal.Notify(children, unix.SIGCHLD)
	done := make(chan struct{})
	go func() { r.Run(children); close(done) }()
	t.Cleanup(func() {
		signal.Stop(children)
		close(children)
		<-done
	})
	return r
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func wait(t *testing.T, exit <-chan Exit) Exit {
	t.Helper()
	select {
	case e := <-exit:
		return e
	case <-time.After(time.Minute):
		t.Fatal("no exit within a minute")
	}
	return Exit{}
}

func TestEveryChildsExitArrivesOnce(t *testing.T) {
	r := start(t)
	var wg sync.WaitGroup
	for code := range 64 {
		wg.Go(func() {
			_, exit, err := r.Fork(sh(fmt.Sprintf("exit %d", code)), &syscall.ProcAttr{})
			if err != nil {
				t.Error(err)
				return
			}
			if e := wait(t, exit); e.Code() != code {
				t.Errorf("exit code %d, want %d", e.Code(), code)
			}
		})
	}
	wg.Wait()
}

func TestASignalIsToldAs128AndItsNumber(t *testing.T) {
	r := start(t)
	pid, exit, err := r.Fork(sh("exec sleep 1000"), &syscall.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Signal(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, exit); e.Code() != 137 {
		t.Errorf("exit code %d, want 137", e.Code())
	}
	if err := r.Signal(pid, syscall.SIGKILL); err != syscall.ESRCH {
		t.Errorf("a signal to what was reaped: %v, want ESRCH", err)
	}
	if err := r.Signal(os.Getpid(), syscall.SIGKILL); err != syscall.ESRCH {
		t.Errorf("a signal to what is no child: %v, want ESRCH", err)
	}
}

func TestAProgramThatIsNotThereIsAnErrorAndLeavesNoChild(t *testing.T) {
	r := start(t)
	if _, _, err := r.Fork([]string{"/nowhere"}, &syscall.ProcAttr{}); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("error %v", err)
	}
	if len(r.waiting) != 0 {
		t.Errorf("waits for %v", r.waiting)
	}
}

// orphan runs a program that leaves another behind, as a detaching runtime
// does, and returns its pid.
func orphan(t *testing.T, r *Reaper, script string) int {
	t.Helper()
	file := t.TempDir() + "/pid"
	_, exit, err := r.Fork(sh("("+script+") & echo $! >"+file), &syscall.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, exit)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestAnOrphanIsClaimedBeforeOrAfterItsEnd(t *testing.T) {
	r := start(t)
	for _, ended := range []bool{true, false} {
		done := r.Adopt()
		// It sleeps until the shell that forked it cannot reap it any more.
		pid := orphan(t, r, "sleep 0.2; exit 5")
		if ended {
			for syscall.Kill(pid, 0) == nil { // until it was reaped
				time.Sleep(time.Millisecond)
			}
		}
		exit, err := r.Claim(pid)
		done()
		if err != nil {
			t.Fatal(err)
		}
		if e := wait(t, exit); e.Code() != 5 {
			t.Errorf("ended %v: exit code %d, want 5", ended, e.Code())
		}
	}
	if len(r.orphans) != 0 {
		t.Errorf("keeps %v", r.orphans)
	}
}

func TestAnOrphanIsClaimedBeforeItsParentHasEnded(t *testing.T) {
	r := start(t)
	defer r.Adopt()()
	file := filepath.Join(t.TempDir(), "pid")
	// The shell goes on for a while after it has told the pid, as the process
	// does that crun leaves to start the container.
	_, parent, err := r.Fork([]string{"/bin/sh", "-c", "sleep 0.4 & echo $! >" + file + ".new; mv " + file + ".new " + file + "; sleep 0.2"},
		&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for text, err = os.ReadFile(file); err != nil; text, err = os.ReadFile(file) {
		time.Sleep(time.Millisecond)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	exit, err := r.Claim(pid)
	if err != nil {
		t.Fatal(err)
	}
	// It is ours from the moment that its parent ends, which may be reaped a
	// moment later.
	if e := wait(t, parent); e.Code() != 0 {
		t.Errorf("the parent's exit code %d", e.Code())
	}
	if e := wait(t, exit); e.Code() != 0 {
		t.Errorf("exit code %d", e.Code())
	}
}

func TestWhatIsNoChildIsNotWaitedForEver(t *testing.T) {
	r := start(t)
	defer r.Adopt()()
	if _, err := r.Claim(1); err == nil || !strings.Contains(err.Error(), "not a child") {
		t.Errorf("error %v", err)
	}
}
