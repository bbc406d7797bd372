package kubeletapi

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berth-io/berth/agent/kubeletapi/access"
)

func TestAnswersAreTheKubelets(t *testing.T) {
	w := newWorld(t, func(w *world) {
		w.runtime.unable = status.Error(codes.Unimplemented, "no checkpoints")
		write(t, filepath.Join(w.config.LogDir, "kubelet.log"), "hello\n")
	})
	for _, c := range []struct {
		method, path string
		code         int
		body         string // a part of it; "=" before: all of it
	}{
		{"GET", "/healthz", 200, "=ok"},
		{"GET", "/healthz/ping", 200, "=ok"},
		{"GET", "/healthz/log", 200, "=ok"},
		{"GET", "/healthz/syncloop", 200, "=ok"},
		{"GET", "/healthz?verbose", 200, "=[+]ping ok\n[+]log ok\n[+]syncloop ok\n[+]device-plugin ok\nhealthz check passed\n"},
		{"GET", "/healthz?verbose&exclude=log", 200, "[+]log excluded: ok\n"},
		{"GET", "/configz", 200, `={"kubeletconfig":{"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"KubeletConfiguration","port":10250}}`},
		{"GET", "/pods", 200, `{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[{"metadata":{"name":"web"`},
		{"GET", "/pods/", 200, `"kind":"PodList"`},
		{"POST", "/pods", 405, ""},
		{"GET", "/runningpods/", 200, `"items":[{"metadata":{"name":"web","namespace":"default","uid":"u1"},"spec":{"containers":[{"name":"app","image":"nginx","resources":{}}]},"status":{}}]`},
		{"GET", "/stats/summary", 200, `"nodeName":"n1","startTime":null,"fs":`},
		{"POST", "/stats/summary?only_cpu_and_memory=true", 200, `={"node":{"nodeName":"n1","startTime":null},"pods":null}`},
		{"GET", "/stats/", 404, ""},
		{"GET", "/metrics", 200, "=/metrics"},
		{"GET", "/metrics/cadvisor", 200, "=/metrics/cadvisor"},
		{"GET", "/metrics/resource", 200, "=/metrics/resource"},
		{"GET", "/metrics/probes", 200, "=/metrics/probes"},
		{"GET", "/metrics/slis", 200, "=/metrics/slis"},
		{"GET", "/logs/", 200, `<a href="kubelet.log">kubelet.log</a>`},
		{"GET", "/logs/kubelet.log", 200, "=hello\n"},
		{"POST", "/logs/", 405, ""},
		{"GET", "/flagz", 200, "\nkubelet flagz\nWarning: "},
		{"GET", "/flagz", 200, "bootstrap-kubeconfig=\nconfig=/var/lib/kubelet/config.yaml\n"},
		{"GET", "/statusz", 200, "Binary version: v1.36.3\n\nPaths: /attach /checkpoint /configz "},
		{"GET", "/debug/pprof/cmdline", 200, ""},
		{"GET", "/debug/flags/v", 405, "=flags endpoint is disabled.\n"},
		{"GET", "/containerLogs/default/no/app", 404, `=pod "no" does not exist`},
		{"GET", "/containerLogs/default/web/no", 404, `=container "no" not found in pod "web"`},
		{"GET", "/containerLogs/default/web/app?tailLines=x", 400, `={"message": "Unable to decode query."}`},
		{"GET", "/containerLogs/default/web/app?tailLines=-1", 422, `={"message": "Invalid request."}`},
		{"POST", "/run/default/web/app?cmd=echo+a+b", 200, "=echo|a|b"},
		{"POST", "/run/default/web/u1/app?cmd=echo", 200, "=echo"},
		{"POST", "/run/default/web/u2/app?cmd=echo", 404, "=pod not found"},
		{"POST", "/run/default/web/app?cmd=false", 500, "=command 'false' exited with 1: bad"},
		{"POST", "/run/default/web/no?cmd=echo", 500, `=container not found ("no")`},
		{"GET", "/run/default/web/app", 405, ""},
		{"POST", "/exec/default/web/app?command=ls", 400, "=you must specify at least 1 of stdin, stdout, stderr"},
		{"POST", "/exec/default/no/app?command=ls&output=1", 404, "=pod does not exist"},
		{"POST", "/exec/default/web/app?command=ls&output=1", 500, "Upgrade request required"},
		{"POST", "/portForward/default/no", 404, "=pod does not exist"},
		{"POST", "/portForward/default/web/u2", 404, "=pod not found"},
		{"POST", "/checkpoint/default/web/no", 404, "=container no does not exist"},
		{"POST", "/checkpoint/default/web/app?timeout=x", 404, "=cannot parse value of timeout parameter"},
		{"POST", "/checkpoint/default/web/app", 500, "=checkpointing of default/web/app failed (rpc error: code = Unimplemented desc = no checkpoints)"},
		{"GET", "/nothing", 404, ""},
	} {
		code, body := w.ask(c.method, c.path)
		part, whole := strings.CutPrefix(c.body, "=")
		if code != c.code || whole && body != part || !strings.Contains(body, part) {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, code, body, c.code, c.body)
		}
	}
	w.counts.mu.Lock()
	defer w.counts.mu.Unlock()
	for _, want := range []string{
		"GET pods readwrite false", "GET metrics/cadvisor readwrite false", "GET debug readwrite true", "POST exec readwrite true",
		"GET containerLogs readwrite false", "GET other readwrite false", "POST portForward readwrite false",
	} {
		if !slices.Contains(w.counts.served, want) {
			t.Errorf("not counted: %s", want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNobodyComesInWithoutACertificate(t *testing.T) {
	w := newWorld(t, nil)
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: w.client.Transport.(*http.Transport).TLSClientConfig.Clone()}}
	stranger.Transport.(*http.Transport).TLSClientConfig.Certificates = nil
	for _, path := range []string{"/", "/pods", "/healthz", "/metrics", "/exec/default/web/app", "/nothing"} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", w.base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := stranger.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// Every path has the authorization that the kubelet's table has for it: what is
// in no table is nodes/proxy, and so are only these.
func TestEveryPathIsInTheAuthorizationTable(t *testing.T) {
	w := newWorld(t, nil)
	m := newMux()
	w.server.open(m)
	w.server.systemLogs(m)
	w.server.profiling(m)
	w.server.guarded(m)
	proxied := map[string]bool{"run": true, "exec": true, "attach": true, "portForward": true, "containerLogs": true, "debug": true}
	for _, path := range m.paths {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://n"+strings.NewReplacer("{$}", "", "{", "", "}", "").Replace(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := access.Of(r).Subresources; proxied[bucket(path)] != (got[0] == "proxy") {
			t.Errorf("%s needs %v", path, got)
		}
	}
}

func TestTheReadOnlyPortOnlyReads(t *testing.T) {
	port := 0
	w := newWorld(t, func(w *world) {
		port = freePort(t)
		w.config.ReadOnlyPort = port
	})
	for path, want := range map[string]int{
		"/pods": 200, "/healthz": 200, "/stats/summary": 200, "/metrics": 200, "/metrics/resource": 200,
		"/exec/default/web/app": 405, "/run/default/web/app": 405, "/containerLogs/default/web/app": 405, "/logs/": 405, "/runningpods/": 405, "/debug/pprof/": 405,
		"/configz": 404, "/checkpoint/default/web/app": 404,
	} {
		code, body := get(t, fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if code != want || want == 405 && body != "Debug endpoints are disabled.\n" {
			t.Errorf("%s: %d %q, want %d", path, code, body, want)
		}
	}
	w.counts.mu.Lock()
	defer w.counts.mu.Unlock()
	for _, served := range w.counts.served {
		if !strings.Contains(served, " readonly ") {
			t.Errorf("counted as %q", served)
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestTheHealthPortSaysThatTheProcessLives(t *testing.T) {
	port := 0
	w := newWorld(t, func(w *world) {
		port = freePort(t)
		w.config.HealthzPort = port
		w.config.SyncLoop = func() error { return errors.New("stuck for 3m") }
	})
	if code, body := get(t, fmt.Sprintf("http://127.0.0.1:%d/healthz", port)); code != 200 || body != "ok" {
		t.Errorf("%d %q", code, body)
	}
	code, body := w.ask("GET", "/healthz")
	if want := "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\n[+]device-plugin ok\nhealthz check failed\n"; code != 500 || body != want {
		t.Errorf("%d %q", code, body)
	}
	if code, body := w.ask("GET", "/healthz/syncloop"); code != 500 || body != "internal server error: stuck for 3m\n" {
		t.Errorf("%d %q", code, body)
	}
}

func TestDebuggingHandlersCanBeSwitchedOff(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.EnableDebuggingHandlers = false })
	for path, want := range map[string]int{"/pods": 200, "/exec/default/web/app": 405, "/logs/": 405, "/configz": 404, "/debug/pprof/": 405} {
		if code, _ := w.ask("GET", path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
}

func TestLogAndProfilingHandlersCanBeSwitchedOffAlone(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.EnableSystemLogHandler, w.config.EnableProfilingHandler = false, false })
	for path, want := range map[string]string{"/logs/": "logs endpoint is disabled.\n", "/debug/pprof/": "profiling endpoint is disabled.\n"} {
		if code, body := w.ask("GET", path); code != 405 || body != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

func TestTheVerbosityOfLibrariesCanBeSet(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.EnableDebugFlagsHandler = true })
	defer func() {
		var zero klog.Level
		if err := zero.Set("0"); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		method, body string
		code         int
		answer       string
	}{
		{"PUT", "3", 200, "successfully set klog.logging.verbosity to 3"}, {"PUT", "x", 400, `strconv.ParseUint: parsing "x": invalid syntax`}, {"GET", "", 406, "unsupported http method"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, w.base+"/debug/flags/v", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || !strings.HasPrefix(string(body), c.answer) {
			t.Errorf("%s %s: %s %q %v", c.method, c.body, resp.Status, body, err)
		}
	}
	if !klog.V(3).Enabled() {
		t.Error("it is not set")
	}
}

func TestWithoutTheServerTheOtherPortsAreServed(t *testing.T) {
	w := newWorld(t, nil)
	other := *w
	other.config.EnableServer, other.config.Port = false, freePort(t)
	other.config.HealthzPort, other.config.ReadOnlyPort = freePort(t), freePort(t)
	api := other.config.Port
	other.config.Port = other.config.HealthzPort // what run waits for
	other.server = New(w.server.parts, other.config)
	other.run()
	for _, url := range []string{fmt.Sprintf("http://127.0.0.1:%d/healthz", other.config.HealthzPort), fmt.Sprintf("http://127.0.0.1:%d/pods", other.config.ReadOnlyPort)} {
		if code, body := get(t, url); code != 200 {
			t.Errorf("%s: %d %q", url, code, body)
		}
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", api)); err == nil {
		c.Close()
		t.Error("the API is served")
	}
}

func TestOnlyTheConfiguredCurvesAreUsed(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.Curves = []tls.CurveID{tls.CurveP384} })
	for curve, works := range map[tls.CurveID]bool{tls.CurveP384: true, tls.X25519: false} {
		client := w.client.Transport.(*http.Transport).TLSClientConfig.Clone()
		client.CurvePreferences = []tls.CurveID{curve}
		c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.config.Port), client)
		if (err == nil) != works {
			t.Errorf("%v: %v", curve, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

func TestThePagesOfTheComponentCanBeSwitchedOff(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.Flags, w.config.Statusz = nil, false })
	for _, path := range []string{"/flagz", "/statusz"} {
		if code, body := w.ask("GET", path); code != 404 {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

func TestAPortThatIsTakenIsAnError(t *testing.T) {
	w := newWorld(t, nil)
	config := w.config
	config.HealthzPort = config.Port
	other := New(w.server.parts, config)
	if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "listen for the kubelet API") {
		t.Errorf("%v", err)
	}
}

func TestContainerLogs(t *testing.T) {
	w := newWorld(t, nil)
	line := func(second int, stream, text string) string {
		return fmt.Sprintf("2026-11-28T00:00:%02d.000000001Z %s F %s\n", second, stream, text)
	}
	write(t, w.runtime.logPath, line(1, "stdout", "one")+line(2, "stderr", "two")+line(3, "stdout", "three"))
	write(t, w.runtime.logPath+".before", line(0, "stdout", "earlier"))
	for query, want := range map[string]string{
		"": "one\ntwo\nthree\n", "tailLines=1": "three\n", "limitBytes=5": "one\nt", "previous=true": "earlier\n",
		"stream=Stderr": "two\n", "sinceTime=2026-11-28T00:00:03Z": "three\n", "tail=2": "two\nthree\n", "tailLines=0": "",
		"timestamps=1&tailLines=1": "2026-11-28T00:00:03.000000001Z three\n",
	} {
		if code, body := w.ask("GET", "/containerLogs/default/web/app?"+query); code != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", query, code, body, want)
		}
	}
}

func TestAFollowedLogEndsWithItsContainer(t *testing.T) {
	w := newWorld(t, nil)
	write(t, w.runtime.logPath, "2026-11-28T00:00:01Z stdout F one\n")
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.base+"/containerLogs/default/web/app?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 4)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "one\n" {
		t.Fatalf("%q, %v", first, err)
	}
	f, err := os.OpenFile(w.runtime.logPath, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w.runtime.mu.Lock()
	w.runtime.state = runtimeapi.ContainerState_CONTAINER_EXITED
	w.runtime.mu.Unlock()
	if _, err := f.WriteString("2026-11-28T00:00:02Z stdout F two\n"); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "two\n" {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestWhichContainersLogIsMeant(t *testing.T) {
	running := v1.ContainerState{Running: &v1.ContainerStateRunning{}}
	ended := func(id string) v1.ContainerState {
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ContainerID: id}}
	}
	waiting := func(why string) v1.ContainerState {
		return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: why}}
	}
	for name, c := range map[string]struct {
		status   v1.ContainerStatus
		previous bool
		id, err  string
	}{
		"running":                  {status: v1.ContainerStatus{State: running, ContainerID: "x://now", LastTerminationState: ended("x://old")}, id: "now"},
		"the one before":           {status: v1.ContainerStatus{State: running, ContainerID: "x://now", LastTerminationState: ended("x://old")}, previous: true, id: "old"},
		"no one before":            {status: v1.ContainerStatus{State: running, ContainerID: "x://now"}, previous: true, err: `previous terminated container "app" in pod "web" not found`},
		"ended":                    {status: v1.ContainerStatus{State: ended("x://end")}, id: "end"},
		"ended without starting":   {status: v1.ContainerStatus{State: ended(""), LastTerminationState: ended("x://old")}, id: "old"},
		"never started":            {status: v1.ContainerStatus{State: ended("")}, err: `container "app" in pod "web" is terminated`},
		"waiting after an end":     {status: v1.ContainerStatus{State: waiting("CrashLoopBackOff"), LastTerminationState: ended("x://old")}, id: "old"},
		"waiting":                  {status: v1.ContainerStatus{State: waiting("ContainerCreating")}, err: `container "app" in pod "web" is waiting to start: ContainerCreating`},
		"an image that fails":      {status: v1.ContainerStatus{State: waiting("ErrImagePull")}, err: `container "app" in pod "web" is waiting to start: image can't be pulled`},
		"an image that backs off":  {status: v1.ContainerStatus{State: waiting("ImagePullBackOff")}, err: `container "app" in pod "web" is waiting to start: trying and failing to pull image`},
		"nothing known but a name": {err: `container "app" in pod "web" is waiting to start - no logs yet`},
	} {
		c.status.Name = "app"
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Status: v1.PodStatus{InitContainerStatuses: []v1.ContainerStatus{c.status}}}
		id, err := logOf(pod, "app", c.previous)
		if id != c.id || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %q, %v; want %q, %q", name, id, err, c.id, c.err)
		}
	}
	if _, err := logOf(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}}, "app", false); err == nil || err.Error() != `container "app" in pod "web" is not available` {
		t.Errorf("no status: %v", err)
	}
}

func TestACheckpointIsWrittenWhereTheKubeletPutsIt(t *testing.T) {
	w := newWorld(t, nil)
	code, body := w.ask("POST", "/checkpoint/default/web/app")
	var got struct{ Items []string }
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 || len(got.Items) != 1 {
		t.Fatalf("%d %q, %v", code, body, err)
	}
	if got.Items[0] != w.runtime.location || !strings.HasPrefix(got.Items[0], filepath.Join(w.dir, "checkpoints", "checkpoint-web_default-app-")) || !strings.HasSuffix(got.Items[0], ".tar") {
		t.Errorf("%q, the runtime was told %q", got.Items, w.runtime.location)
	}
}

func TestStructuredZPages(t *testing.T) {
	w := newWorld(t, nil)
	for path, kind := range map[string]string{"/flagz": "Flagz", "/statusz": "Statusz"} {
		for accept, want := range map[string]int{"application/json;v=v1beta1;g=config.k8s.io;as=" + kind: 200, "application/json": 406, "*/*": 200} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", w.base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Accept", accept)
			resp, err := w.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != want || strings.Contains(accept, "as=") && !strings.HasPrefix(string(body), `{"kind":"`+kind+`","apiVersion":"config.k8s.io/v1beta1","metadata":{"name":"kubelet"`) {
				t.Errorf("%s as %s: %s %q %v", path, accept, resp.Status, body, err)
			}
		}
	}
}
