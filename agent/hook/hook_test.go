package hook

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const of = `for Container "app" in Pod "web_ns(uid-1)" failed`

func testPod() *v1.Pod {
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "web", "ns", "uid-1"
	return pod
}

func TestExecHandler(t *testing.T) {
	for _, tt := range []struct {
		name         string
		output       string
		code         int
		err          error
		message, say string
	}{
		{"a command that succeeds", "done\n", 0, nil, "done\n", ""},
		{"a command that fails", "no such file\n", 3, nil, "", "Exec lifecycle hook ([sh -c x]) " + of + ` - error: command 'sh -c x' exited with 3, message: "no such file\n"`},
		{"a command that cannot be run", "", 0, errors.New("not found"), "", "Exec lifecycle hook ([sh -c x]) " + of + ` - error: not found, message: ""`},
		{"a long output is cut", strings.Repeat("a", 1<<20), 0, nil, strings.Repeat("a", 10<<10), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := New(Config{Exec: func(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int, error) {
				if id != "c1" || timeout != 0 {
					t.Errorf("exec in %s with a timeout of %s", id, timeout)
				}
				return []byte(tt.output), tt.code, tt.err
			}})
			handler := &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", "x"}}}
			message, err := r.Run(t.Context(), testPod(), &v1.Container{Name: "app"}, handler, "c1", "")
			if message != tt.message || text(err) != tt.say {
				t.Errorf("got  %.60q, %v\nwant %.60q, %s", message, err, tt.message, tt.say)
			}
		})
	}
}

func TestHTTPHandler(t *testing.T) {
	var seen *http.Request
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		if r.URL.Path == "/bad" {
			w.WriteHeader(500)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	gone := httptest.NewServer(handler)
	gone.Close()

	for _, tt := range []struct {
		name   string
		server *httptest.Server
		action v1.HTTPGetAction
		podIP  string
		err    string // a part
		event  string
	}{
		{"an answer is a success", plain, v1.HTTPGetAction{Path: "/x"}, "127.0.0.1", "", ""},
		{"any answer is", plain, v1.HTTPGetAction{Path: "/bad"}, "127.0.0.1", "", ""},
		{"HTTPS without a look at the certificate", secure, v1.HTTPGetAction{Path: "/x", Scheme: v1.URISchemeHTTPS}, "127.0.0.1", "", ""},
		{"HTTPS falls back where the server speaks HTTP", plain, v1.HTTPGetAction{Path: "/x", Scheme: v1.URISchemeHTTPS,
			HTTPHeaders: []v1.HTTPHeader{{Name: "Authorization", Value: "secret"}, {Name: "X-A", Value: "a"}}}, "127.0.0.1", "",
			"LifecycleHTTPFallback: request to HTTPS lifecycle hook HOST got HTTP response, retry with HTTP succeeded"},
		{"nobody there", gone, v1.HTTPGetAction{Path: "/x"}, "127.0.0.1", "HTTP lifecycle hook (/x) " + of + ` - error: Get "http://HOST/x": dial tcp HOST: connect: connection refused`, ""},
		{"a pod without an address", plain, v1.HTTPGetAction{Path: "/x"}, "", "HTTP lifecycle hook (/x) " + of + " - error: failed to find networking container", ""},
		{"a host of its own, a named port and headers", plain, v1.HTTPGetAction{Path: "/x?q=1", Host: "localhost", Port: intstr.FromString("web"),
			HTTPHeaders: []v1.HTTPHeader{{Name: "x-lower", Value: "1"}, {Name: "X-Lower", Value: "2"}, {Name: "host", Value: "example.org"}, {Name: "Accept", Value: ""}}}, "", "", ""},
		{"a port that does not exist", plain, v1.HTTPGetAction{Path: "/x", Port: intstr.FromString("db")}, "127.0.0.1", `container app has no port named "db"`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.Parse(tt.server.URL)
			if err != nil {
				t.Fatal(err)
			}
			if tt.action.Port == (intstr.IntOrString{}) {
				port, err := strconv.Atoi(u.Port())
				if err != nil {
					t.Fatal(err)
				}
				tt.action.Port = intstr.FromInt(port)
			}
			var event string
			r := New(Config{Event: func(_ *v1.Pod, _, reason, message string) { event = reason + ": " + message }})
			seen = nil
			port, err := strconv.Atoi(u.Port())
			if err != nil {
				t.Fatal(err)
			}
			app := &v1.Container{Name: "app", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}
			_, err = r.Run(t.Context(), testPod(), app, &v1.LifecycleHandler{HTTPGet: &tt.action}, "c1", tt.podIP)
			host := func(s string) string { return strings.ReplaceAll(s, "HOST", u.Host) }
			if (err == nil) != (tt.err == "") || !strings.Contains(text(err), host(tt.err)) {
				t.Errorf("error %v, want %s", err, host(tt.err))
			}
			if event != host(tt.event) {
				t.Errorf("event %q, want %q", event, host(tt.event))
			}
			if tt.err != "" {
				return
			}
			if seen == nil || seen.UserAgent() != "kube-lifecycle/1.36" {
				t.Fatalf("request %+v", seen)
			}
			if tt.action.Host != "" && (seen.Host != "example.org" || len(seen.Header["X-Lower"]) != 2 || seen.Header["Accept"] != nil || seen.URL.RawQuery != "q=1") {
				t.Errorf("request to %s %s with the headers %v", seen.Host, seen.URL, seen.Header)
			}
			if tt.event != "" && (seen.Header.Get("Authorization") != "" || seen.Header.Get("X-A") != "a") {
				t.Errorf("the plain request has the headers %v", seen.Header)
			}
		})
	}
}

func TestAHandlerEndsWithItsContext(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	handler := &v1.LifecycleHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Host: "127.0.0.1", Port: intstr.FromString(u.Port())}}
	if _, err := New(Config{}).Run(ctx, testPod(), &v1.Container{Name: "app"}, handler, "c1", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestSleepHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		handler := &v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: 5}}
		r := New(Config{})
		if _, err := r.Run(t.Context(), testPod(), &v1.Container{Name: "app"}, handler, "c1", ""); err != nil || time.Since(began) != 5*time.Second {
			t.Errorf("slept %s, %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if _, err := r.Run(ctx, testPod(), &v1.Container{Name: "app"}, &v1.LifecycleHandler{Sleep: &v1.SleepAction{}}, "c1", ""); err != nil || time.Since(began) != 0 {
			t.Errorf("slept %s for nothing, %v", time.Since(began), err)
		}
		_, err := r.Run(ctx, testPod(), &v1.Container{Name: "app"}, handler, "c1", "")
		if want := "Sleep lifecycle hook (5) " + of + " - error: container terminated before sleep hook finished: context deadline exceeded"; text(err) != want {
			t.Errorf("error %v, want %s", err, want)
		}
	})
}

func TestOtherHandlersAreRefused(t *testing.T) {
	for name, handler := range map[string]v1.LifecycleHandler{
		"tcpSocket": {TCPSocket: &v1.TCPSocketAction{}},
		"empty":     {},
	} {
		if _, err := New(Config{}).Run(t.Context(), testPod(), &v1.Container{Name: "app"}, &handler, "c1", ""); !strings.HasPrefix(text(err), "cannot run handler: invalid handler: ") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
