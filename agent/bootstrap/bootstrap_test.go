package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

func config(t *testing.T, a *fakeAPI) Config {
	t.Helper()
	dir, kubeconfig, bootstrap := pki(t)
	return Config{
		NodeName: "worker", Kubeconfig: kubeconfig, BootstrapKubeconfig: a.kubeconfig(t, bootstrap, token), CertDir: dir, Rotate: true,
		ContentType: "application/json", Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		Addresses: func() []v1.NodeAddress { return nil },
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// start runs an Identity until the test ends.
func start(t *testing.T, c Config) *Identity {
	t.Helper()
	i, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return i
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for range 600 {
		if err = f(); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}

// seen tells whether the API server takes us for the node.
func seen(i *Identity) error {
	client, err := kubernetes.NewForConfig(i.Client())
	if err != nil {
		return err
	}
	_, err = client.CertificatesV1().CertificateSigningRequests().List(context.Background(), metav1.ListOptions{})
	return err
}

func TestATokenBecomesACertificateWithTheKubeletsFiles(t *testing.T) {
	for _, rotate := range []bool{true, false} {
		t.Run(fmt.Sprintf("rotate %v", rotate), func(t *testing.T) {
			a := newFakeAPI(t)
			c := config(t, a)
			c.Rotate = rotate
			i := start(t, c)
			eventually(t, "requests as the node", func() error { return seen(i) })
			if user := a.users[len(a.users)-1]; user != "system:node:worker" {
				t.Errorf("the API server takes the node for %s", user)
			}
			link, err := os.Readlink(filepath.Join(c.CertDir, "kubelet-client-current.pem"))
			if err != nil || !strings.HasPrefix(filepath.Base(link), "kubelet-client-") {
				t.Errorf("kubelet-client-current.pem is %q, %v", link, err)
			}
			r, err := readKubeconfig(c.Kubeconfig)
			if err != nil || r.CertFile != filepath.Join(c.CertDir, "kubelet-client-current.pem") || r.Host != a.URL || r.BearerToken != "" {
				t.Errorf("kubeconfig: %+v, %v", r, err)
			}
			if exists(filepath.Join(c.CertDir, keyFile)) {
				t.Errorf("%s is left behind", keyFile)
			}
		})
	}
}

func TestARestartUsesTheCertificateAndNotTheToken(t *testing.T) {
	a := newFakeAPI(t)
	c := config(t, a)
	first := start(t, c)
	eventually(t, "requests as the node", func() error { return seen(first) })
	if err := os.Remove(c.BootstrapKubeconfig); err != nil {
		t.Fatal(err)
	}
	made := len(a.names)
	i, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := seen(i); err != nil {
		t.Fatal(err)
	}
	if len(a.names) != made {
		t.Errorf("another certificate was asked for: %v", a.names)
	}
}

func TestAnInterruptedRequestIsResumedWithItsKeyAndName(t *testing.T) {
	a := newFakeAPI(t)
	c := config(t, a)
	c.Rotate = false
	a.set(func() { a.away = true })
	i, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = i.Run(ctx) // killed while it asks
	key, err := os.ReadFile(filepath.Join(c.CertDir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.away = false })
	again := start(t, c)
	eventually(t, "requests as the node", func() error { return seen(again) })
	pair, err := os.ReadFile(filepath.Join(c.CertDir, "kubelet-client-current.pem"))
	if err != nil || !strings.Contains(string(pair), strings.TrimSpace(string(key))) {
		t.Errorf("the certificate is for another key than that of the first request (%v)", err)
	}
}

func TestACertificateIsRotatedAndConnectionsAreMadeAnew(t *testing.T) {
	a := newFakeAPI(t)
	a.lifetime = 5 * time.Second
	i := start(t, config(t, a))
	eventually(t, "requests as the node", func() error { return seen(i) })
	first := i.ClientCertificate()
	a.set(func() { a.lifetime = time.Hour })
	eventually(t, "another certificate", func() error {
		if now := i.ClientCertificate(); now == nil || slices.Equal(now.Certificate[0], first.Certificate[0]) {
			return errors.New("it is the old one")
		}
		return seen(i)
	})
}

func TestAnExpiredCertificateIsRenewedOnceThereIsABootstrapKubeconfig(t *testing.T) {
	a := newFakeAPI(t)
	a.lifetime = 2 * time.Second
	c := config(t, a)
	i := start(t, c)
	eventually(t, "requests as the node", func() error { return seen(i) })
	a.set(func() { a.away = true })
	if err := os.Remove(c.BootstrapKubeconfig); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the certificate expires", func() error {
		if i.ClientCertificate() != nil {
			return errors.New("it holds")
		}
		return nil
	})
	a.set(func() { a.away, a.lifetime = false, time.Hour })
	restarted, err := New(c)
	if err != nil {
		t.Fatalf("a node with an expired certificate does not start: %v", err)
	}
	if restarted.ClientCertificate() != nil {
		t.Error("an expired certificate is used")
	}
	a.kubeconfig(t, c.BootstrapKubeconfig, token)
	eventually(t, "requests as the node", func() error { return seen(i) })
}

func TestAKubeconfigWithATokenIsUsedAsItIs(t *testing.T) {
	a := newFakeAPI(t)
	c := config(t, a)
	c.Kubeconfig, c.BootstrapKubeconfig = c.BootstrapKubeconfig, ""
	c.Rotate = false
	i, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := seen(i); err != nil {
		t.Error(err)
	}
}

func TestWithoutAnythingToReachTheClusterItSaysSo(t *testing.T) {
	dir, kubeconfig, bootstrap := pki(t)
	_, err := New(Config{NodeName: "n", Kubeconfig: kubeconfig, BootstrapKubeconfig: bootstrap, CertDir: dir, Rotate: true, Log: slog.Default()})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), kubeconfig) || !strings.Contains(err.Error(), bootstrap) {
		t.Errorf("got %v", err)
	}
}

func TestAServingCertificateIsAskedForWithTheNodesAddresses(t *testing.T) {
	a := newFakeAPI(t)
	c := config(t, a)
	c.ServerTLSBootstrap = true
	c.Addresses = func() []v1.NodeAddress {
		return []v1.NodeAddress{{Type: v1.NodeHostName, Address: "worker"}, {Type: v1.NodeInternalIP, Address: "192.0.2.7"}}
	}
	i := start(t, c)
	if _, err := i.ServingCertificate(); err == nil {
		t.Error("there is a serving certificate before the cluster has signed one")
	}
	eventually(t, "a serving certificate", func() error { _, err := i.ServingCertificate(); return err })
	pair, err := i.ServingCertificate()
	if err != nil || pair.Leaf.VerifyHostname("worker") != nil || pair.Leaf.VerifyHostname("192.0.2.7") != nil {
		t.Errorf("%+v, %v", pair, err)
	}
	if !exists(filepath.Join(c.CertDir, "kubelet-server-current.pem")) {
		t.Error("kubelet-server-current.pem is missing")
	}
}

func TestServingRequestsHaveEveryAddressOnceAndNoneWithoutAnIP(t *testing.T) {
	if r := servingRequest("n", []v1.NodeAddress{{Type: v1.NodeHostName, Address: "n"}}); r != nil {
		t.Errorf("asked without an address: %+v", r)
	}
	r := servingRequest("n", []v1.NodeAddress{
		{Type: v1.NodeInternalIP, Address: "2001:db8::1"}, {Type: v1.NodeExternalIP, Address: "192.0.2.1"}, {Type: v1.NodeInternalIP, Address: "192.0.2.1"},
		{Type: v1.NodeHostName, Address: "n"}, {Type: v1.NodeInternalDNS, Address: "n"}, {Type: v1.NodeExternalDNS, Address: "a.example"}, {Type: v1.NodeInternalIP, Address: "x"},
	})
	if !slices.Equal(r.DNSNames, []string{"a.example", "n"}) || len(r.IPAddresses) != 2 || !r.IPAddresses[0].Equal(net.IPv4(192, 0, 2, 1)) {
		t.Errorf("%+v", r)
	}
	if r.Subject.CommonName != "system:node:n" || !slices.Equal(r.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("subject %v", r.Subject)
	}
}

func pairFiles(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	c, k, err := certutil.GenerateSelfSignedCertKey(name, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := errors.Join(keyutil.WriteKey(key, k), certutil.WriteCert(cert, c)); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestServingFilesAreReadAgainAndABadOneChangesNothing(t *testing.T) {
	dir := t.TempDir()
	f := &fileServing{log: func(string, ...any) {}}
	f.cert, f.key = pairFiles(t, dir, "first")
	name := func() string {
		t.Helper()
		f.looked = time.Time{} // as if time had passed
		pair, err := f.current()
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.DNSNames[0]
	}
	if got := name(); got != "first" {
		t.Fatalf("got %s", got)
	}
	if err := os.WriteFile(f.cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "first" {
		t.Errorf("with a broken file: got %s", got)
	}
	pairFiles(t, dir, "second")
	if got := name(); got != "second" {
		t.Errorf("after the change: got %s", got)
	}
}

func TestASelfSignedCertificateIsMadeOnceAndKept(t *testing.T) {
	a := newFakeAPI(t)
	c := config(t, a)
	var serial [2]string
	for n := range serial {
		i, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := i.ServingCertificate()
		if err != nil || pair.Leaf.VerifyHostname("worker") != nil {
			t.Fatalf("%v, %v", pair, err)
		}
		serial[n] = pair.Leaf.SerialNumber.String()
	}
	if serial[0] != serial[1] {
		t.Error("a restart made another one")
	}
	for _, f := range []string{"kubelet.crt", "kubelet.key"} {
		if !exists(filepath.Join(c.CertDir, f)) {
			t.Errorf("%s is missing", f)
		}
	}
}

func TestASelfSignedCertificateThatWasBeingRenewedIsFinished(t *testing.T) {
	for _, test := range []struct {
		name  string
		keyIn bool // the new key is in place
	}{{"nothing is in place yet", false}, {"the key is in place", true}} {
		dir := t.TempDir()
		first := &fileServing{cert: filepath.Join(dir, "kubelet.crt"), key: filepath.Join(dir, "kubelet.key"), selfSigned: "n", log: func(string, ...any) {}}
		old, err := first.current()
		if err != nil {
			t.Fatal(err)
		}
		cert, key, err := certutil.GenerateSelfSignedCertKey("n", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		keyFile := first.key + ".new"
		if test.keyIn {
			keyFile = first.key
		}
		for path, content := range map[string][]byte{keyFile: key, first.cert + ".new": cert} {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		again := &fileServing{cert: first.cert, key: first.key, selfSigned: "n", log: func(string, ...any) {}}
		pair, err := again.current()
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if renewed := !bytes.Equal(pair.Certificate[0], old.Certificate[0]); renewed != test.keyIn {
			t.Errorf("%s: renewed %v", test.name, renewed)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.new")); len(left) > 0 {
			t.Errorf("%s: left %v", test.name, left)
		}
	}
}

func TestASetClockIsNoticed(t *testing.T) {
	for _, c := range []struct {
		wall, passed time.Duration
		want         bool
	}{
		{time.Minute, time.Minute, false},
		{time.Minute + 2*time.Second, time.Minute, false}, // slewed
		{3 * time.Hour, time.Minute, true},                // suspended, or set forward
		{-time.Hour, time.Minute, true},                   // set back
	} {
		if got := drifted(c.wall, c.passed); got != c.want {
			t.Errorf("wall %s, passed %s: %v", c.wall, c.passed, got)
		}
	}
}
