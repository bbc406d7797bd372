package workloads

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sized has a shell show the size of its terminal, once it has that of
// kubectl's: the size comes beside what is typed.
const sized = `until stty size | grep -q "^40 1""00"; do sleep 0.1; done; stty size; `

func TestRunGivesAShellOnATerminalAndRemovesThePod(t *testing.T) {
	s := newSpace(t)
	k := s.terminal("run", "shell", "-i", "--tty", "--rm", "--restart=Never", "--pod-running-timeout=4m", "--image="+box, "--command", "--", "sh")
	k.expect("command prompt")
	k.enter("")
	k.expect("/ #")
	k.enter("echo answer $((40+2)); " + sized + "tty")
	k.expect("answer 42")
	k.expect("40 100")
	k.expect("/dev/pts/0")
	k.enter("exit")
	equal(t, "exit status", k.end(), 0)
	contains(t, "end", k.output(), `pod "shell" deleted`)
	s.gone("pod/shell")
}

func TestExecPassesStreamsExitCodeAndTerminal(t *testing.T) {
	s := newSpace(t)
	s.pod("box", `containers: [{name: box, image: $BOX}, {name: other, image: $BOX, env: [{name: WHO, value: other}]}]`)
	cmd := shared.Command(s.ctx, "kubectl", "-n", s.ns, "exec", "-i", "box", "-c", "box", "--", "sh", "-c", "cat; echo told >&2; exit 7")
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(strings.Repeat("0123456789abcde\n", 1<<16)), &stdout, &stderr
	if err := cmd.Run(); err == nil {
		t.Error("kubectl exits with 0")
	}
	equal(t, "exit status", cmd.ProcessState.ExitCode(), 7)
	equal(t, "bytes that came back", stdout.Len(), 1<<20)
	equal(t, "standard error", stderr.String(), "told\ncommand terminated with exit code 7\n")
	equal(t, "other container", s.kubectl("exec", "box", "-c", "other", "--", "sh", "-c", "echo $WHO"), "other")
	contains(t, "command that is not there", s.refused("exec", "box", "--", "no-such-program"), "executable file not found")
	contains(t, "container that is not there", s.refused("exec", "box", "-c", "none", "--", "true"), "container none is not valid for pod box")

	k := s.terminal("exec", "-it", "box", "-c", "box", "--", "sh")
	k.expect("/ #")
	k.enter(sized + "sleep 600")
	k.expect("40 100")
	if _, err := k.tty.Write([]byte{3}); err != nil { // Ctrl-C ends the sleep
		t.Fatal(err)
	}
	k.enter("exit 5")
	equal(t, "exit status on a terminal", k.end(), 5)
}

func TestAttachFollowsTheMainProcess(t *testing.T) {
	s := newSpace(t)
	s.pod("echo", `containers: [{name: box, image: $BOX, stdin: true, stdinOnce: true, command: [sh, -c, 'while read line; do echo "got $line"; done; echo end']}]`, `restartPolicy: Never`)
	cmd := shared.Command(s.ctx, "kubectl", "-n", s.ns, "attach", "-i", "echo")
	cmd.Stdin = strings.NewReader("one\ntwo\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "output", string(out), "got one\ngot two\n")
	s.want("pod/echo", ".status.phase", "Succeeded") // its input was closed
}

func TestLogsAreFollowedToTheEnd(t *testing.T) {
	s := newSpace(t)
	s.create("talk", `restartPolicy: Never`, `containers: [{name: a, image: $BOX, command: [testbox, lines, -n=200, -interval=10ms]}, {name: b, image: $BOX, command: [echo, other]}]`)
	s.kubectl("wait", "--for=jsonpath={.status.containerStatuses[0].started}", "pod/talk", wait)
	lines := strings.Split(s.kubectl("logs", "-f", "talk", "-c", "a"), "\n")
	equal(t, "lines", len(lines), 201)
	for i, line := range lines[:200] {
		if want := fmt.Sprint("line ", i+1); line != want {
			t.Fatalf("line %d is %q, want %q", i+1, line, want)
		}
	}
	s.want("pod/talk", ".status.phase", "Succeeded")
	equal(t, "last lines", s.kubectl("logs", "talk", "-c", "a", "--tail=2"), "line 200\nend 200")
	equal(t, "first bytes", s.kubectl("logs", "talk", "-c", "a", "--limit-bytes=6"), "line 1")
	stamped := s.kubectl("logs", "talk", "-c", "b", "--timestamps")
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z other$`).MatchString(stamped) {
		t.Errorf("line with its time: %q", stamped)
	}
	equal(t, "since the future", s.kubectl("logs", "talk", "-c", "b", "--since-time=2100-01-01T00:00:00Z"), "")
	contains(t, "all containers", s.kubectl("logs", "talk", "--all-containers", "--prefix", "--tail=1"), "[pod/talk/b] other")
}

func TestPortForwardReachesPodsAndServices(t *testing.T) {
	s := newSpace(t)
	s.pod("web", `containers: [{name: box, image: $BOX, ports: [{containerPort: 8080}], command: [testbox, serve],
		readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}}]`)
	s.kubectl("expose", "pod", "web", "--selector=app=web", "--port=80", "--target-port=8080")
	s.kubectl("label", "pod", "web", "app=web")
	for _, target := range []string{"pod/web", "service/web"} {
		remote := map[string]string{"pod/web": "8080", "service/web": "80"}[target]
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		cmd := shared.Command(ctx, "kubectl", "-n", s.ns, "port-forward", target, ":"+remote)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		m := regexp.MustCompile(`Forwarding from (127.0.0.1:\d+) -> 8080`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("kubectl port-forward says %q, %v", line, err)
		}
		for range 3 { // each over a stream of its own
			equal(t, "answer through "+target, httpGet(t, "http://"+m[1]+"/"), "web\n")
		}
		cancel()
		_ = cmd.Wait() // killed
	}
}

// httpGet asks from the control plane's host.
func httpGet(t *testing.T, url string) string {
	t.Helper()
	cfg, err := shared.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: cfg.Dial, DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestCpCopiesFilesBothWays(t *testing.T) {
	s := newSpace(t)
	s.pod("box", `containers: [{name: box, image: $BOX}]`)
	from := filepath.Join(t.TempDir(), "from")
	big := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB
	if err := os.MkdirAll(from+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"small": "text\n", "sub/big": big} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	s.kubectl("cp", from, "box:/tmp/there")
	equal(t, "small file", s.exec("box", "sh", "-c", "cat /tmp/there/small; stat -c %a /tmp/there/small"), "text\n640")
	to := filepath.Join(t.TempDir(), "to")
	s.kubectl("cp", "box:/tmp/there", to)
	back, err := os.ReadFile(to + "/sub/big")
	if err != nil {
		t.Fatal(err)
	}
	if string(back) != big {
		t.Errorf("4 MiB came back as %d other bytes", len(back))
	}
}

func TestDebugJoinsAPod(t *testing.T) {
	s := newSpace(t)
	s.pod("web", `containers: [{name: box, image: $BOX, command: [testbox, serve, -name=debugged],
		readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}}]`)
	s.kubectl("debug", "web", "--image="+box, "--target=box", "--container=look", "--", "testbox", "pause")
	s.kubectl("wait", "--for=jsonpath={.status.ephemeralContainerStatuses[0].state.running}", "pod/web", wait)
	look := func(script string) string { return s.kubectl("exec", "web", "-c", "look", "--", "sh", "-c", script) }
	contains(t, "first process that the debugger sees", look("tr '\\0' ' ' </proc/1/cmdline"), "serve -name=debugged")
	equal(t, "web server of the pod", look("testbox get http://127.0.0.1:8080/"), "debugged")
	equal(t, "file of the debugged container", look("touch /tmp/mine; ls /proc/1/root/tmp"), "")
	equal(t, "ready", s.get("pod/web", ".status.conditions[?(@.type=='Ready')].status"), "True")
	// A copy of the pod, with another command.
	s.kubectl("debug", "web", "--copy-to=copy", "--keep-readiness", "--container=box", "--", "testbox", "serve", "-name=copied")
	s.ready("pod/copy")
	equal(t, "the copy", s.kubectl("exec", "copy", "-c", "box", "--", "testbox", "get", "http://127.0.0.1:8080/"), "copied")
}

func TestDebugShowsANode(t *testing.T) {
	s := newSpace(t)
	said := s.kubectl("debug", "node/n1", "--image="+box, "--profile=sysadmin", "--", "sh", "-c", "hostname; ls -d /host/etc; ps | grep -c [k]ube-proxy")
	m := regexp.MustCompile(`node-debugger-n1-\S+`).FindString(said)
	if m == "" {
		t.Fatalf("kubectl debug says %q", said)
	}
	s.want("pod/"+m, ".status.phase", "Succeeded")
	lines := strings.Fields(s.kubectl("logs", m))
	if len(lines) != 3 || lines[0] != "n1" || lines[1] != "/host/etc" {
		t.Errorf("the node shows %q, want its name, /host/etc and the number of its kube-proxies", lines)
	}
}
