package access

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The kubelet's table: pkg/kubelet/server/auth.go and auth_test.go.
func TestAttributesAreTheKubelets(t *testing.T) {
	for path, want := range map[string]string{
		"/": "proxy", "/attach": "proxy", "/attach/ns/p/c": "proxy", "/exec/ns/p/c": "proxy", "/run/ns/p/c": "proxy",
		"/portForward/ns/p": "proxy", "/containerLogs/ns/p/c": "proxy", "/debug/pprof/heap": "proxy", "/debug/flags/v": "proxy",
		"/configz": "configz,proxy", "/flagz": "configz", "/statusz": "statusz",
		"/healthz": "healthz,proxy", "/healthz/": "healthz,proxy", "/healthz/ping": "healthz,proxy", "/healthz/log": "healthz,proxy", "/healthz/syncloop": "healthz,proxy",
		"/pods": "pods,proxy", "/pods/": "pods,proxy", "/runningpods": "pods,proxy", "/runningpods/": "pods,proxy",
		"/stats": "stats", "/stats/": "stats", "/stats/summary": "stats",
		"/metrics": "metrics", "/metrics/cadvisor": "metrics", "/metrics/resource": "metrics", "/metrics/probes": "metrics", "/metrics/slis": "metrics",
		"/logs": "log", "/logs/": "log", "/logs/kubelet.log": "log", "/checkpoint/ns/p/c": "checkpoint", "/checkpoint": "checkpoint",
		"/podsx": "proxy", "/metricsx": "proxy", "/logsx/": "proxy", "/healthzx": "proxy", "/pod": "proxy", "//metrics": "proxy", "/x/metrics": "proxy",
	} {
		for method, verb := range map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "HEAD": "", "OPTIONS": ""} {
			r := httptest.NewRequest(method, "https://node"+"/", nil)
			r.URL.Path = path
			got := Of(r)
			if got.Verb != verb || strings.Join(got.Subresources, ",") != want {
				t.Errorf("%s %s: %s %v, want %s %s", method, path, got.Verb, got.Subresources, verb, want)
			}
		}
	}
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a authority) sign(t *testing.T, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func request(cert *x509.Certificate, token string) *http.Request {
	r := httptest.NewRequest("GET", "https://node/pods", nil)
	r.TLS = &tls.ConnectionState{}
	if cert != nil {
		r.TLS.PeerCertificates = []*x509.Certificate{cert}
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

// tokens knows the token "good".
type tokens struct {
	asked int
	err   error
}

func (f *tokens) Create(_ context.Context, r *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	f.asked++
	if f.err != nil {
		return nil, f.err
	}
	r = r.DeepCopy()
	if r.Spec.Token == "good" {
		r.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:kube-system:metrics-server", UID: "u", Groups: []string{"system:serviceaccounts"},
			Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}},
		}}
	}
	return r, nil
}

func TestCertificatesTellWhoAsks(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	file := filepath.Join(t.TempDir(), "ca.crt")
	write(t, file, append([]byte("a comment before\n"), ca.pem()...))
	a, err := NewAuthenticator(AuthnConfig{ClientCAFile: file})
	if err != nil {
		t.Fatal(err)
	}
	u, err := a.Who(request(ca.sign(t, nil), ""))
	if err != nil || u.Name != "kube-apiserver-kubelet-client" || !slices.Equal(u.Groups, []string{"system:masters", "system:authenticated"}) {
		t.Fatalf("%+v, %v", u, err)
	}
	if id := u.Extra[credentialID]; len(id) != 1 || !strings.HasPrefix(id[0], "X509SHA256=") {
		t.Errorf("credential ID %v", id)
	}
	for name, cert := range map[string]*x509.Certificate{
		"of another authority": other.sign(t, nil),
		"of a server":          ca.sign(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"that is over":         ca.sign(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"without a name":       ca.sign(t, func(c *x509.Certificate) { c.Subject = pkix.Name{Organization: []string{"system:masters"}} }),
	} {
		if u, err := a.Who(request(cert, "")); err == nil {
			t.Errorf("a certificate %s is %+v", name, u)
		}
	}
	if u, err := a.Who(request(nil, "")); u != nil || err != nil {
		t.Errorf("nobody is %+v, %v", u, err)
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	// A new file, as by rename: what a certificate renewal does.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestAChangedCAFileIsReadAgain(t *testing.T) {
	ca, next := newAuthority(t, "ca"), newAuthority(t, "next")
	file := filepath.Join(t.TempDir(), "ca.crt")
	write(t, file, ca.pem())
	a, err := NewAuthenticator(AuthnConfig{ClientCAFile: file})
	if err != nil {
		t.Fatal(err)
	}
	old, renewed := request(ca.sign(t, nil), ""), request(next.sign(t, nil), "")
	write(t, file, []byte("not a certificate"))
	if _, err := a.Who(old); err != nil {
		t.Errorf("a file that cannot be used took the old one's place: %v", err)
	}
	write(t, file, next.pem())
	if _, err := a.Who(renewed); err != nil {
		t.Errorf("the new authority: %v", err)
	}
	if _, err := a.Who(old); err == nil {
		t.Error("the old authority still counts")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Who(renewed); err != nil {
		t.Errorf("without the file: %v", err)
	}
}

func TestAClientCAFileThatCannotBeUsedIsAnErrorAtTheStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.crt")
	if _, err := NewAuthenticator(AuthnConfig{ClientCAFile: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a missing file: %v", err)
	}
	write(t, file, []byte("x"))
	if _, err := NewAuthenticator(AuthnConfig{ClientCAFile: file}); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("an empty file: %v", err)
	}
}

func TestTokensAreAskedAboutOnceInTheirTime(t *testing.T) {
	f := &tokens{}
	a, err := NewAuthenticator(AuthnConfig{Tokens: f, TokenTTL: 2 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	a.tokens.now = func() time.Time { return now }
	for range 3 {
		u, err := a.Who(request(nil, "good"))
		if err != nil || u.UID != "u" || !slices.Equal(u.Groups, []string{"system:serviceaccounts", "system:authenticated"}) || u.Extra["k"][0] != "v" {
			t.Fatalf("%+v, %v", u, err)
		}
		if u, err := a.Who(request(nil, "bad")); err == nil {
			t.Fatalf("a bad token is %+v", u)
		}
	}
	if f.asked != 2 {
		t.Errorf("asked %d times, want 2", f.asked)
	}
	now = now.Add(2 * time.Minute)
	if _, err := a.Who(request(nil, "good")); err != nil || f.asked != 3 {
		t.Errorf("after its time: asked %d times, %v", f.asked, err)
	}
}

func TestAFailedQuestionIsAskedAgain(t *testing.T) {
	f := &tokens{err: errors.New("connection refused")}
	a, err := NewAuthenticator(AuthnConfig{Tokens: f, TokenTTL: time.Hour, Anonymous: true})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := a.Who(request(nil, "good")); err == nil {
		t.Fatalf("without an answer it is %+v: a token that cannot be judged must not become anonymous", u)
	}
	f.err = nil
	if _, err := a.Who(request(nil, "good")); err != nil {
		t.Error(err)
	}
}

func TestATokenCountsWhereACertificateDoesNot(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	file := filepath.Join(t.TempDir(), "ca.crt")
	write(t, file, ca.pem())
	a, err := NewAuthenticator(AuthnConfig{ClientCAFile: file, Tokens: &tokens{}})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := a.Who(request(other.sign(t, nil), "good")); err != nil || u.UID != "u" {
		t.Errorf("%+v, %v", u, err)
	}
	if u, err := a.Who(request(ca.sign(t, nil), "good")); err != nil || u.UID != "" {
		t.Errorf("a good certificate goes before a token: %+v, %v", u, err)
	}
}

func TestAnonymousOnlyWhereItIsAllowed(t *testing.T) {
	a, err := NewAuthenticator(AuthnConfig{Anonymous: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}
	if u, err := a.Who(request(nil, "")); err != nil || !reflect.DeepEqual(u, want) {
		t.Errorf("%+v, %v", u, err)
	}
}

// reviews allows the subresources that are named.
type reviews struct {
	allow string
	asked []string
	err   error
}

func (f *reviews) Create(_ context.Context, r *authorizationv1.SubjectAccessReview, _ metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error) {
	a := r.Spec.ResourceAttributes
	f.asked = append(f.asked, fmt.Sprintf("%s %s %s/%s %s", r.Spec.User, a.Verb, a.Resource, a.Subresource, a.Name))
	if f.err != nil {
		return nil, f.err
	}
	r = r.DeepCopy()
	r.Status.Allowed = strings.Contains(f.allow, a.Subresource)
	return r, nil
}

func guard(t *testing.T, f *reviews, anonymous bool) http.Handler {
	t.Helper()
	authn, err := NewAuthenticator(AuthnConfig{Anonymous: anonymous})
	if err != nil {
		t.Fatal(err)
	}
	authz := NewAuthorizer(AuthzConfig{NodeName: "n1", Reviews: f, AllowTTL: time.Minute, DenyTTL: time.Minute})
	return NewGuard(authn, authz, slog.New(slog.DiscardHandler)).Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "through", r.Header.Get("Authorization"))
	}))
}

func TestTheGuardAnswersAsTheKubelet(t *testing.T) {
	for name, c := range map[string]struct {
		allow, path, method string
		stranger            bool
		code                int
		text                string
		asked               []string
	}{
		"pods by their own subresource": {allow: "pods", path: "/pods", code: 200, text: "through", asked: []string{"system:anonymous get nodes/pods n1"}},
		"pods by proxy":                 {allow: "proxy", path: "/pods", code: 200, text: "through", asked: []string{"system:anonymous get nodes/pods n1", "system:anonymous get nodes/proxy n1"}},
		"metrics not by proxy": {allow: "proxy", path: "/metrics", code: 403, text: "Forbidden (user=system:anonymous, verb=get, resource=nodes, subresource(s)=[metrics])\n",
			asked: []string{"system:anonymous get nodes/metrics n1"}},
		"nothing": {path: "/healthz", code: 403, text: "Forbidden (user=system:anonymous, verb=get, resource=nodes, subresource(s)=[healthz proxy])\n",
			asked: []string{"system:anonymous get nodes/healthz n1", "system:anonymous get nodes/proxy n1"}},
		"exec creates": {allow: "proxy", path: "/exec/a/b/c", method: "POST", code: 200, text: "through", asked: []string{"system:anonymous create nodes/proxy n1"}},
		"a stranger":   {allow: "proxy", path: "/pods", stranger: true, code: 401, text: "Unauthorized"},
	} {
		f := &reviews{allow: c.allow}
		h := guard(t, f, !c.stranger)
		for range 2 { // the second time from memory
			w := httptest.NewRecorder()
			r := httptest.NewRequest(cmp(c.method, "GET"), "https://node"+c.path, nil)
			r.Header.Set("Authorization", "Basic secret")
			h.ServeHTTP(w, r)
			if w.Code != c.code || w.Body.String() != c.text {
				t.Errorf("%s: %d %q, want %d %q", name, w.Code, w.Body, c.code, c.text)
			}
		}
		if !slices.Equal(f.asked, c.asked) {
			t.Errorf("%s: asked %q, want %q", name, f.asked, c.asked)
		}
	}
}

func cmp(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func TestAnAuthorizerThatCannotAskIsNoPermission(t *testing.T) {
	f := &reviews{allow: "proxy", err: errors.New("no route to host")}
	w := httptest.NewRecorder()
	guard(t, f, true).ServeHTTP(w, httptest.NewRequest("GET", "https://node/logs/", nil))
	if want := "Authorization error (user=system:anonymous, verb=get, resource=nodes, subresource=log)"; w.Code != 500 || w.Body.String() != want {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestAQuestionIsRepeatedWhereTheServerSaysLater(t *testing.T) {
	n := 0
	err := retry(t.Context(), func() error {
		if n++; n < 2 {
			return apierrors.NewTooManyRequests("later", 0)
		}
		return nil
	})
	if err != nil || n != 2 {
		t.Errorf("asked %d times: %v", n, err)
	}
	n = 0
	if err := retry(t.Context(), func() error { n++; return errors.New("no") }); err == nil || n != 1 {
		t.Errorf("a refusal was asked %d times: %v", n, err)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	c := newCache[int]()
	for i := range maxAnswers + 100 {
		_, err := c.get(t.Context(), fmt.Sprint(i), func(context.Context) (int, time.Duration, error) { return i, time.Hour, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(c.kept) > maxAnswers {
		t.Errorf("%d answers are kept", len(c.kept))
	}
}

func TestAnImpatientCallerDoesNotSpoilTheAnswer(t *testing.T) {
	c := newCache[int]()
	ctx, cancel := context.WithCancel(t.Context())
	asking, answer := make(chan struct{}), make(chan struct{})
	ask := func(ctx context.Context) (int, time.Duration, error) {
		close(asking)
		<-answer
		return 7, time.Hour, ctx.Err()
	}
	left := make(chan error)
	go func() {
		_, err := c.get(ctx, "q", ask)
		left <- err
	}()
	<-asking
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the impatient caller: %v", err)
	}
	got := make(chan int)
	go func() {
		n, err := c.get(t.Context(), "q", ask)
		if err != nil {
			t.Error(err)
		}
		got <- n
	}()
	close(answer)
	if n := <-got; n != 7 {
		t.Errorf("the patient one got %d", n)
	}
}
