package kubelet

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"github.com/berth-io/berth/tests/harness"
)

// pods all run at the same time; each is looked at by a test of its own.
var pods = []struct {
	sentence, name, yaml string // yaml follows metadata.name
	check                func(*testing.T, *pod)
}{
	{"init containers, probes and volumes lead to Ready", "web", `
spec:
  initContainers:
  - {name: init, image: $BUSYBOX, command: [sh, -c, 'echo prepared > /shared/file; echo initialised'], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve, -tcp, ':9090']
    startupProbe: {tcpSocket: {port: 9090}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
    livenessProbe: {exec: {command: [sh, -c, 'test -e /shared/file']}, periodSeconds: 1, timeoutSeconds: 20}
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
    volumeMounts: [{name: shared, mountPath: /shared}, {name: memory, mountPath: /memory}]
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
`, checkWeb},
	{"a liveness probe that fails restarts the container", "unhealthy", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve, -unhealthy]
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
`, checkUnhealthy},
	{"a container that crashes is restarted with back-off", "crash", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, exit, -code, '3', -message, 'out of luck', -print, 'one run']}
`, checkCrash},
	{"logs are rotated without a gap", "chatty", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, lines, -interval, 5ms, -width, '150']}
`, checkRotation},
	{"standard input is attached", "attached", `
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: $BUSYBOX, command: [cat], stdin: true}
`, checkAttach},
	{"a pod on the node's network sees it", "host", `
spec:
  hostNetwork: true
  containers:
  - {name: main, image: $BOX, command: [testbox, serve, -http, '127.0.0.1:18080']}
`, checkHostNetwork},
	{"a pod ends in time", "graceful", `
spec:
  terminationGracePeriodSeconds: 3600
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'exec testbox term -print gone -delay 1s >/out/stdout']
    volumeMounts: [{name: out, mountPath: /out}]
  volumes:
  - {name: out, hostPath: {path: $DIR/out, type: DirectoryOrCreate}}
`, func(_ *testing.T, p *pod) { p.waitReady() }},
}

func checkWeb(t *testing.T, p *pod) {
	got := p.waitReady()
	if s, _ := harness.Container(got, "init"); s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" {
		t.Errorf("the init container is %v", s.State)
	}
	if got.Status.Phase != corev1.PodRunning || !strings.HasPrefix(got.Status.PodIP, "10.88.") {
		t.Errorf("phase %s, IP %q", got.Status.Phase, got.Status.PodIP)
	}
	if s, _ := harness.Container(got, "main"); s.RestartCount != 0 || !strings.HasPrefix(s.ContainerID, "berth://") {
		t.Errorf("%d restarts, container ID %s", s.RestartCount, s.ContainerID)
	}
	for _, websocket := range []bool{false, true} {
		stdout, stderr, err := p.exec(websocket, "main", "sh", "-c", "cat /shared/file; df /memory | grep -o tmpfs; echo oops >&2; exit 7")
		if stdout != "prepared\ntmpfs\n" || stderr != "oops\n" || err == nil || !strings.Contains(err.Error(), "exit code 7") {
			t.Errorf("exec (websocket %v): %q, %q, %v", websocket, stdout, stderr, err)
		}
	}
	log, err := p.Get("/containerLogs/default/" + p.name + "/init")
	if err != nil || string(log) != "initialised\n" {
		t.Errorf("log: %q, %v", log, err)
	}
	p.checkPortForward(t)
}

// checkPortForward has two connections over one session.
func (p *pod) checkPortForward(t *testing.T) {
	transport, upgrader, err := spdy.RoundTripperFor(p.API)
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, p.url("portForward", "", nil))
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("port-forward: %v", err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 2 {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
		if err != nil {
			t.Fatalf("over port-forward: %v", err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != p.name+"\n" || err != nil {
			t.Errorf("over port-forward: %q, %v", body, err)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Errorf("port-forward ended with %v", err)
	}
}

func checkUnhealthy(t *testing.T, p *pod) {
	p.wait("restarted", func(c corev1.Pod) string {
		if s, _ := harness.Container(c, "main"); s.RestartCount < 1 || s.LastTerminationState.Terminated == nil {
			return "it is not"
		}
		return ""
	})
}

func checkCrash(t *testing.T, p *pod) {
	// In between it may wait for CreateContainerError: a kubelet that counts
	// runs by what it has heard of can ask for the same one again.
	got := p.wait("restarted twice", func(c corev1.Pod) string {
		if s, _ := harness.Container(c, "main"); s.RestartCount < 2 || s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" {
			return "it is not"
		}
		return ""
	})
	s, _ := harness.Container(got, "main")
	if last := s.LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.Message != "out of luck" {
		t.Errorf("its last run ended as %v", last)
	}
	// Of a container that the kubelet may just be removing for a later one.
	harness.Eventually(t, harness.PodTimeout, "log of the run before", func() string {
		log, err := p.Get("/containerLogs/default/" + p.name + "/main?previous=true")
		if err != nil || string(log) != "one run\n" {
			return fmt.Sprintf("it is %q, error %v", log, err)
		}
		return ""
	})
}

// checkRotation reads the files of a log in order: the kubelet has renamed
// them, compressed all but the last renamed one, and had the runtime go on in
// a new one.
func checkRotation(t *testing.T, p *pod) {
	got := p.waitReady()
	dir := filepath.Join(p.n.Config.PodLogsDir, fmt.Sprintf("default_%s_%s", p.name, got.UID), "main")
	var text string
	harness.Eventually(t, harness.PodTimeout, "two rotations", func() string {
		files, err := filepath.Glob(dir + "/0.log.*")
		if err != nil {
			return err.Error()
		}
		files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".tmp") })
		if len(files) < 2 {
			return fmt.Sprintf("there are %v", files)
		}
		// One that is the oldest may be removed before it is read.
		if text, err = readLogs(files); err != nil {
			return err.Error()
		}
		// The last may be written to until the runtime has heard of its new name.
		text = text[:strings.LastIndex(text, "\n")+1]
		if text == "" {
			return fmt.Sprintf("%v are empty", files)
		}
		return ""
	})
	first := 0 // the kubelet may have removed the oldest file already
	if _, err := fmt.Sscanf(text[strings.Index(text, " line "):], " line %d", &first); err != nil {
		t.Fatalf("the log begins with %.200q: %v", text, err)
	}
	next := first
	for line := range strings.Lines(text) {
		if want := fmt.Sprintf(" stdout F line %d.", next); !strings.Contains(line, want) {
			t.Fatalf("after line %d, the log has %q", next-1, line)
		}
		next++
	}
	if next-first < 300 {
		t.Errorf("%d lines in two files", next-first)
	}
	harness.Eventually(t, harness.PodTimeout, "lines in the new file", func() string {
		st, err := os.Stat(filepath.Join(dir, "0.log")) // absent just after a rename
		if err != nil {
			return err.Error()
		}
		if st.Size() == 0 {
			return "it is empty"
		}
		return ""
	})
}

func readLogs(files []string) (string, error) {
	var text strings.Builder
	slices.Sort(files) // their suffix is the time
	for _, path := range files {
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) { // compressed since it was listed
			path += ".gz"
			data, err = os.ReadFile(path)
		}
		if err != nil {
			return "", err
		}
		var r io.Reader = bytes.NewReader(data)
		if strings.HasSuffix(path, ".gz") {
			if r, err = gzip.NewReader(r); err != nil {
				return "", err
			}
		}
		if _, err := io.Copy(&text, r); err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
	}
	return text.String(), nil
}

func checkAttach(t *testing.T, p *pod) {
	p.waitReady()
	e, err := remotecommand.NewSPDYExecutor(p.API, http.MethodPost, p.url("attach", "main", url.Values{"input": {"1"}, "output": {"1"}}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), harness.PodTimeout)
	defer cancel()
	in, typed := io.Pipe()
	defer typed.Close()
	printed, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out})
		out.Close()
	}()
	if _, err := io.WriteString(typed, "hello\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 6)
	if _, err := io.ReadFull(printed, answer); err != nil || string(answer) != "hello\n" {
		t.Errorf("attach printed %q, %v", answer, err)
	}
	cancel()
	<-ended
	p.waitReady() // a container outlives those who attach to it
}

func checkHostNetwork(t *testing.T, p *pod) {
	p.waitReady() // without an address: that is the node object's, of which there is none
	harness.Eventually(t, harness.PodTimeout, "it is there on the node's loopback", func() string {
		c, err := p.n.Dial(t.Context(), "tcp", "127.0.0.1:18080")
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})
}

// url of a streaming endpoint of the kubelet's server.
func (p *pod) url(verb, container string, query url.Values) *url.URL {
	u, err := url.Parse(p.API.Host)
	if err != nil {
		panic(err) // it is the relay's
	}
	u.Path, u.RawQuery = filepath.Join("/", verb, "default", p.name, container), query.Encode()
	return u
}

func (p *pod) exec(websocket bool, container string, command ...string) (stdout, stderr string, err error) {
	u := p.url("exec", container, url.Values{"command": command, "output": {"1"}, "error": {"1"}})
	var e remotecommand.Executor
	if websocket {
		e, err = remotecommand.NewWebSocketExecutor(p.API, http.MethodGet, u.String())
	} else {
		e, err = remotecommand.NewSPDYExecutor(p.API, http.MethodPost, u)
	}
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.PodTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), err
}
