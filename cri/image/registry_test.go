package image

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// demandToken makes a registry ask for a bearer token, which its token server
// gives to the user me with the password pw, and for the identity token id.
func (r *testRegistry) demandToken(t *testing.T) {
	t.Helper()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, password, _ := req.BasicAuth()
		known := user == "me" && password == "pw"
		if req.Method == http.MethodPost && req.FormValue("grant_type") == "refresh_token" {
			known = req.FormValue("refresh_token") == "id"
		}
		if req.Method == http.MethodPost && req.FormValue("grant_type") == "password" {
			known = req.FormValue("username") == "me" && req.FormValue("password") == "pw"
		}
		if !known || req.FormValue("service") != "registry.test" || req.FormValue("scope") != "repository:secret:pull" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": "let-in", "access_token": "let-in", "expires_in": 300})
	}))
	t.Cleanup(tokens.Close)
	r.spoils(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") == "Bearer let-in" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="registry.test",scope="repository:secret:pull"`, tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestARegistryThatDemandsATokenGetsOne(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "secret:1", small(t, "s"))
	reg.demandToken(t)
	for name, c := range map[string]struct {
		auth  Auth
		works bool
	}{
		"user and password":        {Auth{Username: "me", Password: "pw"}, true},
		"auth":                     {Auth{Auth: base64.StdEncoding.EncodeToString([]byte("me:pw"))}, true},
		"identity token":           {Auth{IdentityToken: "id"}, true},
		"registry token":           {Auth{RegistryToken: "let-in"}, true},
		"registry token for it":    {Auth{RegistryToken: "let-in", ServerAddress: reg.host}, true},
		"nothing":                  {Auth{}, false},
		"wrong password":           {Auth{Username: "me", Password: "no"}, false},
		"wrong identity token":     {Auth{IdentityToken: "no"}, false},
		"wrong registry token":     {Auth{RegistryToken: "no"}, false},
		"another's":                {Auth{Username: "me", Password: "pw", ServerAddress: "https://other.test"}, false},
		"another's registry token": {Auth{RegistryToken: "let-in", ServerAddress: "other.test"}, false},
	} {
		_, err := s.Pull(context.Background(), ref, c.auth, nil)
		switch {
		case c.works && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.works && !errdefs.IsUnauthorized(err):
			t.Errorf("%s: %v, want it to be unauthorized", name, err)
		}
		mustRemove(t, s, ref)
	}
}

func TestCredentialsComeFromTheFileWhenAPullBringsNone(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	config.AuthFile = filepath.Join(t.TempDir(), "config.json")
	s := open(t, config)
	ref := reg.push(t, "secret:1", small(t, "s"))
	reg.demandToken(t)
	write := func(text string) {
		if err := os.WriteFile(config.AuthFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good, bad := base64.StdEncoding.EncodeToString([]byte("me:pw")), base64.StdEncoding.EncodeToString([]byte("me:no"))
	for name, c := range map[string]struct{ file, want string }{
		"its registry":        {fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.host, good), ""},
		"as a URL":            {fmt.Sprintf(`{"auths":{"https://%s/v2/":{"username":"me","password":"pw"}}}`, reg.host), ""},
		"its repository":      {fmt.Sprintf(`{"auths":{%q:{"auth":%q},%q:{"auth":%q}}}`, reg.host, bad, reg.host+"/secret", good), ""},
		"a neighbour's":       {fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.host+"/sec", good), "denies access"},
		"another registry":    {fmt.Sprintf(`{"auths":{"other.test":{"auth":%q}}}`, good), "denies access"},
		"an identity token":   {fmt.Sprintf(`{"auths":{%q:{"identitytoken":"id"}}}`, reg.host), ""},
		"a file that is none": {`{"auths":[`, "credentials: " + config.AuthFile + ": unexpected end of JSON input"},
	} {
		write(c.file)
		_, err := s.Pull(context.Background(), ref, Auth{}, nil)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		mustRemove(t, s, ref)
	}
	if _, err := s.Pull(context.Background(), ref, Auth{Username: "me", Password: "no"}, nil); !errdefs.IsUnauthorized(err) {
		t.Errorf("credentials of the pull itself count for less than the file: %v", err)
	}
}

func TestKeysOfAnAuthFile(t *testing.T) {
	for key, want := range map[string]string{
		"https://index.docker.io/v1/":   "docker.io",
		"docker.io":                     "docker.io",
		"docker.io/library":             "docker.io/library",
		"registry.test:5000":            "registry.test:5000",
		"http://registry.test/v2/":      "registry.test",
		"https://registry.test/team/a/": "registry.test/team/a",
	} {
		if got := authKey(key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

// secureRegistry serves a registry by TLS, with a certificate of its own
// authority, and asks for one of that authority.
func secureRegistry(t *testing.T, reg *testRegistry, config *tls.Config) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Node") != "" {
			w.Header().Set("X-Seen", r.Header.Get("X-Node"))
			reg.mu.Lock()
			reg.gets["header "+r.Header.Get("X-Node")]++
			reg.mu.Unlock()
		}
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/proxy")
		req := r.Clone(r.Context())
		req.RequestURI, req.URL.Scheme, req.URL.Host, req.Host = "", "http", reg.host, reg.host
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	srv.TLS = config
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func TestHostsTomlIsObeyed(t *testing.T) {
	reg := newTestRegistry(t)
	reg.push(t, "lib/app:1", small(t, "app"))
	dir := t.TempDir()
	ca, cert, key := authority(t, dir)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	open1 := secureRegistry(t, reg, &tls.Config{Certificates: []tls.Certificate{pair}})
	closed := secureRegistry(t, reg, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	caFile := filepath.Join(dir, "ca.pem")
	for name, c := range map[string]struct{ hosts, want string }{
		"ca":                    {fmt.Sprintf("[host.%q]\nca = %q\n", open1.URL, caFile), ""},
		"no ca":                 {fmt.Sprintf("server = %q\n", open1.URL), "certificate signed by unknown authority"},
		"skip_verify":           {fmt.Sprintf("[host.%q]\nskip_verify = true\n", open1.URL), ""},
		"client":                {fmt.Sprintf("[host.%q]\nca = %q\nclient = [[%q, %q]]\n", closed.URL, caFile, cert, key), ""},
		"no client":             {fmt.Sprintf("server = %q\nskip_verify = true\n", closed.URL), "certificate required"},
		"header":                {fmt.Sprintf("[host.%q]\nca = %q\n[host.%q.header]\nX-Node = \"n1\"\n", open1.URL, caFile, open1.URL), ""},
		"override_path":         {fmt.Sprintf("[host.\"%s/proxy/v2\"]\nca = %q\noverride_path = true\n", open1.URL, caFile), ""},
		"dead mirrors first":    {fmt.Sprintf("[host.\"http://127.0.0.1:1\"]\n[host.\"http://127.0.0.2:1\"]\n[host.%q]\nskip_verify = true\n", open1.URL), ""},
		"no capability to pull": {fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.%q]\nskip_verify = true\ncapabilities = [\"push\"]\n", open1.URL), "connection refused"},
	} {
		config := testConfig(t)
		hostsFile(t, config, "registry.test", c.hosts)
		s := open(t, config)
		_, err := s.Pull(context.Background(), "registry.test/lib/app:1", Auth{}, nil)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	if reg.gets["header n1"] == 0 {
		t.Error("the header was not sent")
	}
}

func TestASilentMirrorIsPassedOver(t *testing.T) {
	reg, silent := newTestRegistry(t), newTestRegistry(t)
	reg.push(t, "lib/app:1", small(t, "app"))
	silent.spoils(func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	config := testConfig(t)
	config.ProgressTimeout = 300 * time.Millisecond
	hostsFile(t, config, "registry.test", fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n", reg.host, silent.host))
	hostsFile(t, config, "silent.test", fmt.Sprintf("server = \"http://%s\"\n", silent.host))
	s := open(t, config)
	mustPull(t, s, "registry.test/lib/app:1")
	_, err := s.Pull(context.Background(), "silent.test/lib/app:1", Auth{}, nil)
	if want := silent.host + " sent nothing for 300ms, giving up"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestPinsMatchNamesAndPatterns(t *testing.T) {
	p, err := newPins([]string{"busybox", "registry.test/pause:*", "*/team/*", "sha256:" + strings.Repeat("a", 64), "quay.io/a.c:1*"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"docker.io/library/busybox:latest":     true,
		"docker.io/library/busybox:1":          false,
		"registry.test/pause:3.10":             true,
		"registry.test/pause2:3.10":            false,
		"quay.io/team/x@sha256:" + "00":        true,
		"sha256:" + strings.Repeat("a", 64):    true,
		"quay.io/abc:1":                        false,
		"quay.io/a.c:12":                       true,
		"prefix-registry.test/pause:3.10/more": false,
	} {
		if p.match(name) != want {
			t.Errorf("%s: %v, want %v", name, !want, want)
		}
	}
	if _, err := newPins([]string{"Busybox"}); err == nil {
		t.Error("a reference that is none was taken")
	}
}

// authority makes a CA and a certificate of it for 127.0.0.1, for servers and
// clients; files in dir.
func authority(t *testing.T, dir string) (ca []byte, cert, key string) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caTemplate, caTemplate, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	ownKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	ownDER, err := x509.CreateCertificate(rand.Reader, own, caTemplate, ownKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(ownKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFile := write("ca.pem", "CERTIFICATE", caDER)
	if ca, err = os.ReadFile(caFile); err != nil {
		t.Fatal(err)
	}
	return ca, write("cert.pem", "CERTIFICATE", ownDER), write("key.pem", "EC PRIVATE KEY", keyDER)
}

func TestAReferenceWithTagAndDigestIsKnownByItsDigest(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	app := small(t, "app")
	ref := reg.push(t, "team/app:1", app)
	dgst, err := app.Digest()
	if err != nil {
		t.Fatal(err)
	}
	canonical := reg.host + "/team/app@" + dgst.String()
	img := mustPull(t, s, ref+"@"+dgst.String())
	if len(img.RepoTags) != 0 || !slices.Equal(img.RepoDigests, []string{canonical}) {
		t.Errorf("tags %v, digests %v", img.RepoTags, img.RepoDigests)
	}
	if _, ok := s.Get(ref); ok {
		t.Error("the tag is known, which nobody asked the registry for")
	}
	img = mustPull(t, s, ref)
	if !slices.Equal(img.RepoTags, []string{ref}) || !slices.Equal(img.RepoDigests, []string{canonical}) {
		t.Errorf("tags %v, digests %v", img.RepoTags, img.RepoDigests)
	}
	for _, name := range []string{ref, canonical, ref + "@" + dgst.String(), img.ID, img.ID[:20]} {
		if _, ok := s.Get(name); !ok {
			t.Errorf("%s is not known", name)
		}
	}
}
