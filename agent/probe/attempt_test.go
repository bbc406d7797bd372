package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestHTTPProbe(t *testing.T) {
	var seen *http.Request
	mux := http.NewServeMux()
	answer := func(path string, code int, header, value string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			seen = r
			if header != "" {
				w.Header().Set(header, value)
			}
			w.WriteHeader(code)
			_, _ = w.Write([]byte("secret body"))
		})
	}
	answer("/ok", 200, "", "")
	answer("/created", 201, "", "")
	answer("/bad", 500, "", "")
	answer("/missing", 404, "", "")
	answer("/unchanged", 304, "", "")
	answer("/local", 302, "Location", "/ok")
	answer("/away", 302, "Location", "http://elsewhere.invalid/")
	answer("/round", 302, "Location", "/round")
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) })
	plain := httptest.NewServer(mux)
	defer plain.Close()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()

	for _, tt := range []struct {
		name    string
		server  *httptest.Server
		action  v1.HTTPGetAction
		status  outcomeStatus
		message string // its beginning
	}{
		{"200 succeeds", plain, v1.HTTPGetAction{Path: "/ok"}, success, "secret body"},
		{"any 2xx succeeds", plain, v1.HTTPGetAction{Path: "/created"}, success, ""},
		{"a path needs no slash and may have a query", plain, v1.HTTPGetAction{Path: "ok?a=b"}, success, ""},
		{"a certificate is not looked at", secure, v1.HTTPGetAction{Path: "/ok", Scheme: v1.URISchemeHTTPS}, success, ""},
		{"500 fails and its body stays out of the message", plain, v1.HTTPGetAction{Path: "/bad"}, failure, "HTTP probe failed with statuscode: 500"},
		{"404 fails", plain, v1.HTTPGetAction{Path: "/missing"}, failure, "HTTP probe failed with statuscode: 404"},
		{"a redirect to the same host is followed", plain, v1.HTTPGetAction{Path: "/local"}, success, "secret body"},
		{"a redirect to another host is a success with a warning", plain, v1.HTTPGetAction{Path: "/away"}, warning, "Probe terminated redirects, Response body: secret body"},
		{"a 3xx without a place to go is a success with a warning", plain, v1.HTTPGetAction{Path: "/unchanged"}, warning, "Probe terminated redirects, Response body: "},
		{"a redirect without end fails", plain, v1.HTTPGetAction{Path: "/round"}, failure, `Get "/round": stopped after 10 redirects`},
		{"HTTPS to a plain server fails", plain, v1.HTTPGetAction{Path: "/ok", Scheme: v1.URISchemeHTTPS}, failure, `Get "https://127.0.0.1:`},
		{"a port without a number or name is an error", plain, v1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("nope")}, unknown, `container app has no port named "nope"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.action.Port == (intstr.IntOrString{}) {
				tt.action.Port = intstr.FromString("web")
			}
			got := httpGet(t.Context(), NewTransport(), &tt.action, withPort(t, tt.server.URL), "127.0.0.1", 10*time.Second)
			if got.status != tt.status || !strings.HasPrefix(got.message, tt.message) {
				t.Errorf("got %+v, want %d %q", got, tt.status, tt.message)
			}
		})
	}

	t.Run("headers are the kubelet's", func(t *testing.T) {
		c := withPort(t, plain.URL)
		httpGet(t.Context(), NewTransport(), &v1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}, c, "127.0.0.1", 10*time.Second)
		if ua, accept := seen.UserAgent(), seen.Header.Get("Accept"); ua != "kube-probe/1.36" || accept != "*/*" || seen.Header.Get("Accept-Encoding") != "" || !seen.Close {
			t.Errorf("User-Agent %q, Accept %q, %v", ua, accept, seen.Header)
		}
		headers := []v1.HTTPHeader{{Name: "Host", Value: "web.example"}, {Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}, {Name: "accept", Value: ""}, {Name: "user-agent", Value: "me"}}
		httpGet(t.Context(), NewTransport(), &v1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web"), HTTPHeaders: headers}, c, "127.0.0.1", 10*time.Second)
		if seen.Host != "web.example" || len(seen.Header["X-A"]) != 2 || seen.UserAgent() != "me" || seen.Header["Accept"] != nil {
			t.Errorf("Host %s, %v", seen.Host, seen.Header)
		}
	})
	t.Run("no more than 10 KiB of a body are kept", func(t *testing.T) {
		got := httpGet(t.Context(), NewTransport(), &v1.HTTPGetAction{Path: "/big", Port: intstr.FromString("web")}, withPort(t, plain.URL), "127.0.0.1", 10*time.Second)
		if got.status != success || len(got.message) != 10<<10 {
			t.Errorf("status %d, %d bytes", got.status, len(got.message))
		}
	})
}

func TestHTTPProbeOfASilentServerTimesOut(t *testing.T) {
	address := silentListener(t)
	_, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	got := httpGet(t.Context(), NewTransport(), &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt(n)}, &v1.Container{Name: "app"}, "127.0.0.1", time.Millisecond)
	if want := `Get "http://` + address + `/": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`; got != (outcome{failure, want}) &&
		!strings.Contains(got.message, "i/o timeout") { // of the dial, on a busy machine
		t.Errorf("got %+v, want %q", got, want)
	}
}

func TestTCPProbe(t *testing.T) {
	open := silentListener(t)
	if got := tcpConnect(t.Context(), open, 10*time.Second); got != (outcome{status: success}) {
		t.Errorf("an open port: %+v", got)
	}
	closed := closedAddress(t)
	if got, want := tcpConnect(t.Context(), closed, 10*time.Second), "dial tcp "+closed+": connect: connection refused"; got != (outcome{failure, want}) {
		t.Errorf("a closed port: %+v, want %q", got, want)
	}
}

func TestGRPCProbe(t *testing.T) {
	var agent string
	checks := health.NewServer()
	checks.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		agent = strings.Join(md["user-agent"], "")
		return next(ctx, req)
	}))
	healthpb.RegisterHealthServer(server, checks)
	healthy := serveGRPC(t, server)
	other := serveGRPC(t, grpc.NewServer())
	closed := closedAddress(t)
	silent := silentListener(t)

	for _, tt := range []struct {
		name, address, service string
		limit                  time.Duration
		status                 outcomeStatus
		message                string // its beginning
	}{
		{"a serving server succeeds", healthy, "", 10 * time.Second, success, "service healthy"},
		{"a service that is down fails", healthy, "down", 10 * time.Second, failure, `service unhealthy (responded with "NOT_SERVING")`},
		{"an unknown service fails", healthy, "what", 10 * time.Second, failure, "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"},
		{"a server without the health service fails", other, "", 10 * time.Second, failure,
			"error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown service grpc.health.v1.Health"},
		{"a closed port fails at once", closed, "", time.Hour, failure, `error: failed to connect service at "` + closed + `": dial tcp ` + closed + `: connect: connection refused`},
		{"a silent server times out", silent, "", 50 * time.Millisecond, failure, "timeout: health rpc did not complete within 50ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := grpcCheck(t.Context(), tt.address, tt.service, tt.limit)
			if got.status != tt.status || !strings.HasPrefix(got.message, tt.message) {
				t.Errorf("got %+v\nwant %d %q", got, tt.status, tt.message)
			}
		})
	}
	if !strings.HasPrefix(agent, "kube-probe/1.36 ") {
		t.Errorf("user agent %q", agent)
	}
}

func TestExecProbe(t *testing.T) {
	var command []string
	var output []byte
	var code int
	s := NewSet(t.Context(), Config{Exec: func(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, int, error) {
		command = cmd
		return output, code, nil
	}}, &v1.Pod{})
	defer s.Stop()
	c := &container{ctx: t.Context(), target: Target{ContainerID: "c1", Container: &v1.Container{
		Name: "app", Env: []v1.EnvVar{{Name: "FILE", Value: "/f"}, {Name: "REF", ValueFrom: &v1.EnvVarSource{}}}}}}
	spec := &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"cat", "$(FILE)", "$(UNKNOWN)"}}}}

	output = make([]byte, 1<<20)
	if got := s.run(c, spec, ""); got.status != success || len(got.message) != 10<<10 {
		t.Errorf("exit code 0: status %d, %d bytes of output", got.status, len(got.message))
	}
	if strings.Join(command, " ") != "cat /f $(UNKNOWN)" {
		t.Errorf("command %q: plain variables of the spec are expanded, others are not", command)
	}
	output, code = []byte("cat: /f: No such file\n"), 1
	if got := s.run(c, spec, ""); got != (outcome{failure, "cat: /f: No such file\n"}) {
		t.Errorf("exit code 1: %+v", got)
	}
	output, code = nil, 7
	if got := s.run(c, spec, ""); got != (outcome{failure, `command "cat /f $(UNKNOWN)" exited with 7`}) {
		t.Errorf("exit code 7 without a word: %+v", got)
	}
	if got := s.run(c, &v1.Probe{}, ""); got.status != unknown {
		t.Errorf("a probe without a handler: %+v", got)
	}
}

func TestContainerPort(t *testing.T) {
	c := &v1.Container{Name: "app", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: 8080}}}
	for _, tt := range []struct {
		name string
		port intstr.IntOrString
		want int
		err  string
	}{
		{"a number", intstr.FromInt(80), 80, ""},
		{"a name", intstr.FromString("web"), 8080, ""},
		{"a number in quotes", intstr.FromString("81"), 81, ""},
		{"an unknown name", intstr.FromString("db"), 0, `container app has no port named "db"`},
		{"a number out of range", intstr.FromInt(65536), 0, "invalid port number: 65536"},
		{"zero", intstr.FromInt(0), 0, "invalid port number: 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ContainerPort(tt.port, c)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("got %d, %v", got, err)
			}
		})
	}
}

// A whole set against a real server, on the real clock.
func TestASetSeesAServerComeUp(t *testing.T) {
	address := closedAddress(t)
	_, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	c := &v1.Container{Name: "app", ReadinessProbe: &v1.Probe{
		ProbeHandler:  v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt(n)}},
		PeriodSeconds: 3600, TimeoutSeconds: 60, SuccessThreshold: 1, FailureThreshold: 3,
	}}
	s := NewSet(t.Context(), Config{}, &v1.Pod{})
	defer s.Stop()
	s.Sync("127.0.0.1", []Target{{Container: c, ContainerID: "c1", StartedAt: time.Now()}})

	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("somebody else took the port: %v", err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	defer server.Close()
	ok := make(chan struct{})
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ok:
		default:
			close(ok)
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	go func() { _ = server.Serve(l) }()
	<-s.Changed()
	if r := s.Results()["app"]; !r.Ready {
		t.Errorf("result %+v", r)
	}
}

// withPort is a container whose port "web" is that of the server.
func withPort(t *testing.T, server string) *v1.Container {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return &v1.Container{Name: "app", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(n)}}}
}

// silentListener accepts, by its backlog, and never says a word.
func silentListener(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func serveGRPC(t *testing.T, server *grpc.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

func TestEachProbeIsCounted(t *testing.T) {
	for code, want := range map[int]string{0: "Readiness successful", 1: "Readiness failed"} {
		told := make(chan string, 1)
		c := &v1.Container{Name: "app", ReadinessProbe: &v1.Probe{
			ProbeHandler:  v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"check"}}},
			PeriodSeconds: 3600, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3,
		}}
		s := NewSet(t.Context(), Config{
			Exec:  func(context.Context, string, []string, time.Duration) ([]byte, int, error) { return nil, code, nil },
			Event: func(*v1.Container, string, string, string) {},
			Probed: func(_ *v1.Container, kind Kind, result string, _ time.Duration) {
				told <- string(kind) + " " + result
			},
		}, &v1.Pod{})
		s.Sync("127.0.0.1", []Target{{Container: c, ContainerID: "c1", StartedAt: time.Now()}})
		if got := <-told; got != want {
			t.Errorf("exit code %d counts as %q, want %q", code, got, want)
		}
		s.Stop()
	}
}
