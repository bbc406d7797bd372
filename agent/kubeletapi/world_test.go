package kubeletapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	criremote "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/berth-io/berth/agent/kubeletapi/access"
	"github.com/berth-io/berth/agent/podspec"
)

// world is a server with everything around it.
type world struct {
	t       *testing.T
	config  Config
	server  *Server
	runtime *fakeRuntime
	pods    podSet
	counts  *counts
	client  *http.Client // with the API server's certificate
	base    string
	dir     string
}

type podSet []*v1.Pod

func (p podSet) Pods() []*v1.Pod { return p }

// counts are the metrics.
type counts struct {
	mu      sync.Mutex
	served  []string
	sockets []string
}

func (c *counts) Handlers() map[string]http.Handler {
	h := map[string]http.Handler{}
	for _, path := range []string{"/metrics", "/metrics/cadvisor", "/metrics/resource", "/metrics/probes", "/metrics/slis"} {
		h[path] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, path) })
	}
	return h
}

func (c *counts) Serving(method, path, server string, long bool) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served = append(c.served, fmt.Sprint(method, " ", path, " ", server, " ", long))
	return func() {}
}

func (c *counts) WebSocket(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sockets = append(c.sockets, s)
}

func (c *counts) Checked(string, bool) {}

type fixedStats struct{ err error }

func (s fixedStats) Summary(context.Context) (*statsapi.Summary, error) {
	return &statsapi.Summary{Node: statsapi.NodeStats{NodeName: "n1", Fs: &statsapi.FsStats{}}}, s.err
}

func (s fixedStats) CPUAndMemory(context.Context) (*statsapi.Summary, error) {
	return &statsapi.Summary{Node: statsapi.NodeStats{NodeName: "n1"}}, s.err
}

// fakeRuntime is a CRI runtime with one pod; its streaming server is the one that
// runtimes use.
type fakeRuntime struct {
	mu        sync.Mutex
	state     runtimeapi.ContainerState
	logPath   string
	streams   streaming.Server
	location  string
	attachTTY bool
	unable    error // what checkpointing answers
}

const containerID, sandboxID = "c0ffee", "5ea"

func (r *fakeRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{
		Id: sandboxID, Metadata: &runtimeapi.PodSandboxMetadata{Uid: "u1", Name: "web", Namespace: "default"},
		Labels: map[string]string{podspec.LabelPodUID: "u1"},
	}}}, nil
}

func (r *fakeRuntime) ListContainers(_ context.Context, q *runtimeapi.ListContainersRequest, _ ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	if uid, ok := q.GetFilter().GetLabelSelector()[podspec.LabelPodUID]; ok && uid != "u1" {
		return &runtimeapi.ListContainersResponse{}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{
		Id: containerID, Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, State: r.state, PodSandboxId: sandboxID,
		Image: &runtimeapi.ImageSpec{Image: "nginx"}, Labels: map[string]string{podspec.LabelPodUID: "u1"},
	}}}, nil
}

func (r *fakeRuntime) ContainerStatus(_ context.Context, q *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	path := r.logPath
	switch q.GetContainerId() {
	case containerID:
	case "before":
		path += ".before"
	default:
		return nil, status.Error(codes.NotFound, "no such container")
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{State: r.state, LogPath: path}}, nil
}

func (r *fakeRuntime) ExecSync(_ context.Context, q *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	if q.GetCmd()[0] == "false" {
		return &runtimeapi.ExecSyncResponse{ExitCode: 1, Stderr: []byte("bad")}, nil
	}
	return &runtimeapi.ExecSyncResponse{Stdout: []byte(strings.Join(q.GetCmd(), "|"))}, nil
}

func (r *fakeRuntime) CheckpointContainer(_ context.Context, q *runtimeapi.CheckpointContainerRequest, _ ...grpc.CallOption) (*runtimeapi.CheckpointContainerResponse, error) {
	r.location = q.GetLocation()
	return &runtimeapi.CheckpointContainerResponse{}, r.unable
}

func (r *fakeRuntime) Exec(_ context.Context, q *runtimeapi.ExecRequest, _ ...grpc.CallOption) (*runtimeapi.ExecResponse, error) {
	return r.streams.GetExec(q)
}

func (r *fakeRuntime) Attach(_ context.Context, q *runtimeapi.AttachRequest, _ ...grpc.CallOption) (*runtimeapi.AttachResponse, error) {
	r.attachTTY = q.GetTty()
	return r.streams.GetAttach(q)
}

func (r *fakeRuntime) PortForward(_ context.Context, q *runtimeapi.PortForwardRequest, _ ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error) {
	return r.streams.GetPortForward(q)
}

// programs is what runs behind the streaming server.
type programs struct{}

// Exec: "cat" copies its input, "fail" exits with 7, "size" tells the terminal's.
func (programs) Exec(_ context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan criremote.TerminalSize) error {
	switch cmd[0] {
	case "cat":
		_, err := io.Copy(out, in)
		return err
	case "fail":
		fmt.Fprint(errOut, "it fails")
		return exitError(7)
	case "size":
		s := <-resize
		fmt.Fprintf(out, "%dx%d tty=%v", s.Width, s.Height, tty)
	default:
		fmt.Fprint(out, id, " ", strings.Join(cmd, " "))
	}
	return nil
}

func (programs) Attach(_ context.Context, _ string, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
	if in == nil {
		return nil
	}
	_, err := io.Copy(out, in)
	return err
}

// PortForward sends back what comes, with the port before it.
func (programs) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	fmt.Fprint(stream, port, ":")
	_, err := io.Copy(stream, stream)
	return err
}

type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("command terminated with exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

func newWorld(t *testing.T, change func(*world)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), counts: &counts{}}
	w.runtime = &fakeRuntime{state: runtimeapi.ContainerState_CONTAINER_RUNNING, logPath: filepath.Join(w.dir, "0.log")}
	w.streaming()
	w.pods = podSet{testPod()}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	w.config = Config{
		EnableServer: true, Statusz: true,
		Address: "127.0.0.1", HealthzBindAddress: "127.0.0.1",
		EnableDebuggingHandlers: true, EnableSystemLogHandler: true, EnableProfilingHandler: true,
		KubeletConfig: map[string]any{"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "port": 10250},
		Flags:         map[string]string{"config": "/var/lib/kubelet/config.yaml", "bootstrap-kubeconfig": ""},
		Version:       "v1.36.3", KubeletDir: w.dir, LogDir: filepath.Join(w.dir, "log"), SyncLoop: func() error { return nil }, Log: log,
	}
	if err := os.MkdirAll(w.config.LogDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(w)
	}
	ca, caKey := certificate(t, nil, nil, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.Subject.CommonName = true, true, x509.KeyUsageCertSign, "ca"
	})
	caFile := filepath.Join(w.dir, "ca.crt")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	serving, servingKey := certificate(t, ca, caKey, func(c *x509.Certificate) {
		c.IPAddresses, c.ExtKeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	own, ownKey := certificate(t, ca, caKey, func(c *x509.Certificate) {
		c.Subject.CommonName, c.ExtKeyUsage = "kube-apiserver", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	w.config.Certificate = func() (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{serving.Raw}, PrivateKey: servingKey}, nil
	}
	authn, err := access.NewAuthenticator(access.AuthnConfig{ClientCAFile: caFile})
	if err != nil {
		t.Fatal(err)
	}
	w.server = New(Parts{
		Pods: w.pods, Runtime: w.runtime, Stats: fixedStats{}, Metrics: w.counts,
		Authn: authn, Authz: access.NewAuthorizer(access.AuthzConfig{}),
	}, w.config)
	w.config.Port = freePort(t)
	w.server.config.Port = w.config.Port
	w.run()
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	w.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, Certificates: []tls.Certificate{{Certificate: [][]byte{own.Raw}, PrivateKey: ownKey}},
	}}}
	w.base = fmt.Sprintf("https://127.0.0.1:%d", w.config.Port)
	return w
}

func (w *world) run() {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			w.t.Errorf("the server ended with %v", err)
		}
	})
	for range 500 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.config.Port))
		if err == nil {
			c.Close()
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	w.t.Fatal("the server does not listen")
}

func (w *world) streaming() {
	var handler http.Handler
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { handler.ServeHTTP(rw, r) }))
	w.t.Cleanup(front.Close)
	config := streaming.DefaultConfig
	base, err := url.Parse(front.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	config.BaseURL, config.Addr = base, base.Host
	if w.runtime.streams, err = streaming.NewServer(config, programs{}); err != nil {
		w.t.Fatal(err)
	}
	handler = w.runtime.streams
}

// freePort is free now: nothing else in the tests asks the kernel for it again.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func certificate(t *testing.T, ca *x509.Certificate, caKey *ecdsa.PrivateKey, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	change(c)
	if ca == nil {
		ca, caKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c, key
}

func testPod() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: types.UID("u1")},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "app", Image: "nginx"}}},
		Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{{
			Name: "app", ContainerID: "berth://" + containerID, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}},
			LastTerminationState: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ContainerID: "berth://before"}},
		}}},
	}
}

// ask returns code and body.
func (w *world) ask(method, path string) (int, string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}
