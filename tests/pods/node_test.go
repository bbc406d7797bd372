package pods

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/tests/harness"
)

func TestOneNodeADirectory(t *testing.T) {
	n := startNode(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.PodTimeout)
	defer cancel()
	out, err := n.Command(ctx, "node").CombinedOutput()
	if err == nil {
		t.Errorf("a second daemon ran on the first one's directories:\n%s", out)
	}
	contains(t, "message", string(out), n.Config.RunDir)
	// The first one is not disturbed.
	n.Apply(t, "still", manifest(n, "still", "\nspec: {containers: [{name: main, image: $BOX}]}\n")).WaitReady()
	n.RemoveAll()
	n.Stop()
	n.CheckNothingLeft()
}

func TestManyPodsPullOneImageOnce(t *testing.T) {
	n := startNode(t, harness.Options{})
	var pods []*harness.Pod
	for i := range 5 {
		name := fmt.Sprintf("pull-%d", i)
		n.WriteManifest(name+".yaml", manifest(n, name, "\nspec: {containers: [{name: main, image: $BOX}]}\n"))
		pods = append(pods, n.Pod(t, "default", name))
	}
	for _, p := range pods {
		p.WaitReady()
	}
	blobs := map[string]int{}
	for _, request := range n.Registry.Requests() {
		if strings.HasPrefix(request, "GET ") && strings.Contains(request, "/blobs/") {
			blobs[request]++
		}
	}
	if len(blobs) == 0 {
		t.Error("nothing was pulled")
	}
	for request, count := range blobs {
		equal(t, request, count, 1)
	}
	n.RemoveAll()
	n.CheckNothingLeft()
}

func TestLogsAreFollowedToTheEnd(t *testing.T) {
	n := startNode(t, harness.Options{})
	n.Apply(t, "follow", manifest(n, "follow", `
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: $BOX, command: [testbox, lines, -n, "300", --interval, 5ms]}
`))
	harness.Eventually(t, harness.PodTimeout, "it runs", func() string { return n.CLI("logs", "follow").Stderr })
	ctx, cancel := context.WithTimeout(context.Background(), harness.PodTimeout)
	defer cancel()
	out, err := n.Command(ctx, "logs", "-f", "follow").Output()
	if err != nil {
		t.Errorf("logs -f: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	equal(t, "number of lines", len(lines), 301)
	equal(t, "the last line", lines[len(lines)-1], "end 300")
	n.RemoveAll()
	n.CheckNothingLeft()
}

func TestExecWithATerminal(t *testing.T) {
	n := startNode(t, harness.Options{})
	n.Apply(t, "tty", manifest(n, "tty", "\nspec: {containers: [{name: main, image: $BOX}]}\n")).WaitReady()
	master, slave := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 17, Col: 71}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.PodTimeout)
	defer cancel()
	cmd := n.Command(ctx, "exec", "-it", "tty", "--", "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	// The words are put together so that the echo of the input is not taken
	// for the answer. The terminal's size comes beside them.
	if _, err := master.WriteString("until test \"$(stty size)\" = \"17 71\"; do sleep 0.1; done; echo si\"\"ze $(stty size); test -t 0 && echo it is a ter\"\"minal; exit 3\n"); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for s := bufio.NewScanner(master); s.Scan(); { // until the last user of the slave is gone
		text.WriteString(s.Text() + "\n")
	}
	err := cmd.Wait()
	contains(t, "output", text.String(), "size 17 71")
	contains(t, "output", text.String(), "it is a terminal")
	equal(t, "exit code", cmd.ProcessState.ExitCode(), 3)
	if err == nil {
		t.Error("the exit code was lost")
	}
	n.RemoveAll()
	n.CheckNothingLeft()
}

func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
