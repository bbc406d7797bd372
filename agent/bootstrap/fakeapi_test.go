package bootstrap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const token = "abcdef.0123456789abcdef"

// fakeAPI is an API server with certificate signing requests and nothing else,
// which signs each as soon as it is made.
type fakeAPI struct {
	*httptest.Server
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey

	mu       sync.Mutex
	lifetime time.Duration // of what is signed
	away     bool
	requests map[string]*certificatesv1.CertificateSigningRequest
	names    []string // in the order they were made
	users    []string // of every request
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &fakeAPI{ca: ca, caKey: key, lifetime: time.Hour, requests: map[string]*certificatesv1.CertificateSigningRequest{}}
	a.Server = httptest.NewUnstartedServer(a)
	a.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	a.StartTLS()
	t.Cleanup(a.Close)
	return a
}

func (a *fakeAPI) sign(csr *certificatesv1.CertificateSigningRequest) error {
	block, _ := pem.Decode(csr.Spec.Request)
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(a.names)) + 2), Subject: r.Subject, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses,
		NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(a.lifetime),
	}, a.ca, r.PublicKey, a.caKey)
	if err != nil {
		return err
	}
	csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: "True"}}
	return nil
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	user := "system:anonymous"
	if certs := r.TLS.PeerCertificates; len(certs) > 0 && time.Now().Before(certs[0].NotAfter) {
		user = certs[0].Subject.CommonName
	} else if r.Header.Get("Authorization") == "Bearer "+token {
		user = "bootstrap"
	}
	a.users = append(a.users, user)
	switch {
	case a.away:
		http.Error(w, "away", http.StatusServiceUnavailable)
	case user == "system:anonymous":
		answer(w, http.StatusUnauthorized, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: "Unauthorized", Code: 401})
	case !strings.HasPrefix(r.URL.Path, "/apis/certificates.k8s.io/v1/certificatesigningrequests"):
		answer(w, http.StatusNotFound, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: "NotFound", Code: 404})
	case r.Method == http.MethodPost:
		a.create(w, r)
	default:
		a.list(w, r)
	}
}

func (a *fakeAPI) create(w http.ResponseWriter, r *http.Request) {
	var csr certificatesv1.CertificateSigningRequest
	if err := json.NewDecoder(r.Body).Decode(&csr); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if csr.Name == "" {
		csr.Name = fmt.Sprintf("%s%d", csr.GenerateName, len(a.names))
	}
	csr.UID, csr.ResourceVersion = "uid-"+csr.UID, "1"
	a.names = append(a.names, csr.Name)
	if err := a.sign(&csr); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.requests[csr.Name] = &csr
	answer(w, http.StatusCreated, typed(&csr))
}

func typed(csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
	csr.TypeMeta = metav1.TypeMeta{Kind: "CertificateSigningRequest", APIVersion: "certificates.k8s.io/v1"}
	return csr
}

func (a *fakeAPI) list(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	if r.URL.Query().Get("watch") != "" {
		if r.URL.Query().Get("sendInitialEvents") != "" { // client-go lists then
			http.Error(w, "no streaming lists", http.StatusUnprocessableEntity)
		}
		return
	}
	list := certificatesv1.CertificateSigningRequestList{
		TypeMeta: metav1.TypeMeta{Kind: "CertificateSigningRequestList", APIVersion: "certificates.k8s.io/v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"},
	}
	if csr := a.requests[name]; csr != nil {
		list.Items = append(list.Items, *csr)
	}
	answer(w, http.StatusOK, &list)
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // a client that went away is its own business
}

func (a *fakeAPI) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// kubeconfig writes one with a bearer token.
func (a *fakeAPI) kubeconfig(t *testing.T, path, token string) string {
	t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw})
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: a.URL, CertificateAuthorityData: ca}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func pki(t *testing.T) (dir, kubeconfig, bootstrap string) {
	t.Helper()
	dir = t.TempDir()
	return filepath.Join(dir, "pki"), filepath.Join(dir, "kubelet.conf"), filepath.Join(dir, "bootstrap-kubelet.conf")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
