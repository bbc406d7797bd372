package join

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/cluster-bootstrap/token/jws"
)

const (
	id, secret = "abcdef", "0123456789abcdef"
	token      = id + "." + secret
)

// fakeAPI is an API server with the two ConfigMaps of a cluster made by kubeadm.
type fakeAPI struct {
	*httptest.Server
	ca     *x509.Certificate
	signed string // with this token's secret
	config string
	// again is called when cluster-info is asked for once more; nil: nobody wants
	// to know.
	again func()
	asked atomic.Int64
}

func newAPI(t *testing.T) *fakeAPI {
	t.Helper()
	a := &fakeAPI{signed: token, config: "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\nrotateCertificates: true\n"}
	a.Server = httptest.NewTLSServer(a)
	a.ca = a.Certificate()
	t.Cleanup(a.Close)
	return a
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kubeconfig, err := clientcmd.Write(clientcmdapi.Config{Clusters: map[string]*clientcmdapi.Cluster{
		"": {Server: a.URL, CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.ca.Raw})},
	}})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	m := v1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}}
	switch r.URL.Path {
	case "/api/v1/namespaces/kube-public/configmaps/cluster-info":
		if a.asked.Add(1) > 1 && a.again != nil {
			a.again()
		}
		m.Data = map[string]string{"kubeconfig": string(kubeconfig)}
		if a.signed != "" {
			signature, err := jws.ComputeDetachedSignature(string(kubeconfig), id, strings.TrimPrefix(a.signed, id+"."))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			m.Data["jws-kubeconfig-"+id] = signature
		}
	case "/api/v1/namespaces/kube-system/configmaps/kubelet-config":
		if r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		m.Data = map[string]string{"kubelet": a.config}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(m) // a client that went away is its own business
}

func (a *fakeAPI) join(t *testing.T) (Config, *bytes.Buffer) {
	t.Helper()
	dir, out := t.TempDir(), new(bytes.Buffer)
	return Config{
		Discovery:     Discovery{Server: strings.TrimPrefix(a.URL, "https://"), Token: token, CACertHashes: []string{Hash(a.ca)}, Timeout: time.Minute},
		KubernetesDir: filepath.Join(dir, "kubernetes"), KubeletDir: filepath.Join(dir, "kubelet"), Out: out,
	}, out
}

// left are the files that a join has left.
func left(t *testing.T, c Config) []string {
	t.Helper()
	var out []string
	for _, root := range []string{c.KubernetesDir, c.KubeletDir} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestJoiningWritesWhatKubeadmWrites(t *testing.T) {
	a := newAPI(t)
	c, out := a.join(t)
	c.NodeName = "worker"
	if err := Run(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	k, err := clientcmd.LoadFromFile(filepath.Join(c.KubernetesDir, "bootstrap-kubelet.conf"))
	if err != nil || k.Clusters["kubernetes"].Server != a.URL || k.AuthInfos["tls-bootstrap-token-user"].Token != token {
		t.Errorf("bootstrap-kubelet.conf: %+v, %v", k, err)
	}
	if ca, err := certutil.CertsFromFile(filepath.Join(c.KubernetesDir, "pki", "ca.crt")); err != nil || !ca[0].Equal(a.ca) {
		t.Errorf("pki/ca.crt: %v, %v", ca, err)
	}
	flags, err := os.ReadFile(filepath.Join(c.KubeletDir, "kubeadm-flags.env"))
	if err != nil || string(flags) != "KUBELET_KUBEADM_ARGS=\"--hostname-override=worker\"\n" {
		t.Errorf("kubeadm-flags.env: %s, %v", flags, err)
	}
	if !strings.Contains(out.String(), "berth kubelet --bootstrap-kubeconfig=") {
		t.Errorf("it does not say how to start the node:\n%s", out)
	}
}

func TestNobodyIsTrustedWithoutProof(t *testing.T) {
	other, _, err := certutil.GenerateSelfSignedCertKey("other", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := certutil.ParseCertsPEM(other)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		name   string
		change func(*Config, *fakeAPI)
		want   string
	}{
		{"another CA's hash", func(c *Config, _ *fakeAPI) { c.CACertHashes = []string{Hash(certs[0])} }, "this is not the cluster that was meant"},
		{"another token's secret", func(c *Config, _ *fakeAPI) { c.Token = id + ".fedcba9876543210" }, "is not signed with the token abcdef"},
		{"a CA that the server's certificate is not of", func(c *Config, a *fakeAPI) { a.ca = certs[0]; c.CACertHashes = []string{Hash(certs[0])} }, "now with the cluster's CA"},
		{"no hash", func(c *Config, _ *fakeAPI) { c.CACertHashes = nil }, "--discovery-token-ca-cert-hash: it must be given"},
		{"half a hash", func(c *Config, _ *fakeAPI) { c.CACertHashes = []string{"sha256:1234"} }, "must be sha256: and 64 hexadecimal digits"},
		{"no token", func(c *Config, _ *fakeAPI) { c.Token = "" }, "--token: it must be like"},
		{"a URL with a path", func(c *Config, _ *fakeAPI) { c.Server = "https://h:1/x" }, "it must be HOST:PORT"},
		{"a bad node name", func(c *Config, _ *fakeAPI) { c.NodeName = "No_de" }, `--node-name: "No_de"`},
		{"a server that is not there", func(c *Config, _ *fakeAPI) { c.Server, c.Timeout = "127.0.0.1:1", 100*time.Millisecond }, "get the ConfigMap kube-public/cluster-info from https://127.0.0.1:1"},
		{"a configuration with a mistake", func(_ *Config, a *fakeAPI) { a.config += "maxpods: 3\n" }, "maxpods: unknown field"},
		// The last: its user gives up waiting for the signature.
		{"an unknown or expired token", func(_ *Config, a *fakeAPI) { a.signed, a.again = "", cancel }, "is not one of this cluster, or has expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAPI(t)
			config, _ := a.join(t)
			c.change(&config, a)
			err := Run(ctx, config)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if files := left(t, config); len(files) > 0 {
				t.Errorf("it left %v", files)
			}
		})
	}
}

func TestWithoutAHashTheTokenAloneProves(t *testing.T) {
	c, _ := newAPI(t).join(t)
	c.CACertHashes, c.SkipCAVerification = nil, true
	if err := Run(context.Background(), c); err != nil {
		t.Error(err)
	}
}

func TestADryRunWritesNothing(t *testing.T) {
	c, out := newAPI(t).join(t)
	c.DryRun = true
	if err := Run(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	if files := left(t, c); len(files) > 0 || !strings.Contains(out.String(), "would write "+c.configPath()) {
		t.Errorf("files %v, output\n%s", files, out)
	}
}

func TestWhatIsThereIsNotOverwritten(t *testing.T) {
	for _, name := range []string{"kubelet.conf", "pki/ca.crt"} {
		c, _ := newAPI(t).join(t)
		path := filepath.Join(c.KubernetesDir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("mine"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := Run(context.Background(), c); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v", err)
		}
		if files := left(t, c); len(files) != 1 {
			t.Errorf("it left %v", files)
		}
	}
}

// service is one that starts a node, which gets its certificate or fails.
type service struct {
	start   func() error
	stopped bool
}

func (s *service) Start(context.Context) error { return s.start() }
func (s *service) Stop(context.Context) error  { s.stopped = true; return nil }

func TestTheTokenGoesOnceTheNodeHasItsCertificate(t *testing.T) {
	c, _ := newAPI(t).join(t)
	c.Service = &service{start: func() error {
		path := filepath.Join(c.KubeletDir, "pki", "kubelet-client-current.pem")
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600))
	}}
	if err := Run(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.bootstrapPath()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the token is still there: %v", err)
	}
}

func TestANodeThatDoesNotStartLeavesNothing(t *testing.T) {
	c, _ := newAPI(t).join(t)
	s := &service{start: func() error { return errors.New("no such unit") }}
	c.Service = s
	if err := Run(context.Background(), c); err == nil || !strings.Contains(err.Error(), "no such unit") || !s.stopped {
		t.Errorf("got %v, stopped %v", err, s.stopped)
	}
	if files := left(t, c); len(files) > 0 {
		t.Errorf("it left %v", files)
	}
}
