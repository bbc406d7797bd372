package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/token/jws"
	"k8s.io/cluster-bootstrap/util/tokens"
)

// Discovery is how a host finds out which cluster it is about to trust, as
// kubeadm does (cmd/kubeadm/app/discovery/token).
type Discovery struct {
	// Server is HOST:PORT or https://HOST:PORT of the API server.
	Server string
	// Token is a bootstrap token, ID.SECRET.
	Token string
	// CACertHashes are sha256:HEX of public keys that the cluster's CA may have.
	CACertHashes []string
	// SkipCAVerification trusts whoever knows the token.
	SkipCAVerification bool
	// Timeout bounds the wait for the API server and for the token's signature.
	Timeout time.Duration
}

// Cluster is what discovery found.
type Cluster struct {
	// Server is the URL that the cluster gives itself.
	Server string
	// CA is the cluster's CA in PEM.
	CA []byte
}

// retryInterval is between two requests for what is not there yet.
const retryInterval = 2 * time.Second

// validate checks what can be checked without the network.
func (d *Discovery) validate() error {
	if _, err := serverURL(d.Server); err != nil {
		return err
	}
	if _, _, err := tokens.ParseToken(d.Token); err != nil {
		return errors.New("--token: it must be like abcdef.0123456789abcdef: kubeadm token create makes one")
	}
	switch {
	case len(d.CACertHashes) == 0 && !d.SkipCAVerification:
		return errors.New("--discovery-token-ca-cert-hash: it must be given, so that the host trusts no other cluster " +
			"(--discovery-token-unsafe-skip-ca-verification does without)")
	case len(d.CACertHashes) > 0 && d.SkipCAVerification:
		return errors.New("--discovery-token-ca-cert-hash and --discovery-token-unsafe-skip-ca-verification: only one can be given")
	}
	for _, pin := range d.CACertHashes {
		kind, digest, _ := strings.Cut(pin, ":")
		if raw, err := hex.DecodeString(digest); strings.ToLower(kind) != "sha256" || err != nil || len(raw) != sha256.Size {
			return fmt.Errorf("--discovery-token-ca-cert-hash: %q must be sha256: and 64 hexadecimal digits", pin)
		}
	}
	return nil
}

func serverURL(server string) (string, error) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" {
		return "", fmt.Errorf("API server %q: it must be HOST:PORT", strings.TrimPrefix(server, "https://"))
	}
	port := u.Port()
	if port == "" {
		port = "6443"
	}
	return "https://" + net.JoinHostPort(u.Hostname(), port), nil
}

// Find asks the API server, which nobody has vouched for yet, for cluster-info.
// The token's secret proves its content, the pinned hash its CA, and a second
// request over TLS with that CA that it is the same cluster.
func (d *Discovery) Find(ctx context.Context) (Cluster, error) {
	if err := d.validate(); err != nil {
		return Cluster{}, err
	}
	server, err := serverURL(d.Server)
	if err != nil {
		return Cluster{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	info, err := d.clusterInfo(ctx, &rest.Config{Host: server, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		return Cluster{}, err
	}
	text, err := d.verify(info)
	if err != nil {
		return Cluster{}, err
	}
	found, err := readClusterInfo(text)
	if err != nil || d.SkipCAVerification {
		return found, err
	}
	if err := checkPins(found.CA, d.CACertHashes); err != nil {
		return Cluster{}, err
	}
	again, err := d.clusterInfo(ctx, &rest.Config{Host: server, TLSClientConfig: rest.TLSClientConfig{CAData: found.CA}})
	if err != nil {
		return Cluster{}, fmt.Errorf("ask again, now with the cluster's CA: %w", err)
	}
	if !bytes.Equal([]byte(again.Data[api.KubeConfigKey]), text) {
		return Cluster{}, fmt.Errorf("%s says something else over verified TLS than before: it is not the cluster that it says it is", server)
	}
	return found, nil
}

// clusterInfo waits for the ConfigMap and for its signature with our token,
// which a controller adds shortly after the token was made. When the time is
// over it says what was in the way before; a certificate that is not of the CA
// does not become so.
func (d *Discovery) clusterInfo(ctx context.Context, c *rest.Config) (*v1.ConfigMap, error) {
	c.Timeout = 10 * time.Second
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	id, _, err := tokens.ParseToken(d.Token)
	if err != nil {
		return nil, err
	}
	var before error
	for {
		info, err := client.CoreV1().ConfigMaps(metav1.NamespacePublic).Get(ctx, api.ConfigMapClusterInfo, metav1.GetOptions{})
		var unverified *tls.CertificateVerificationError
		switch {
		case err != nil && ctx.Err() != nil && before != nil:
			return nil, before
		case errors.As(err, &unverified):
			return nil, fmt.Errorf("get the ConfigMap kube-public/cluster-info from %s: %w", c.Host, err)
		case err != nil:
			err = fmt.Errorf("get the ConfigMap kube-public/cluster-info from %s: %w", c.Host, err)
		case info.Data[api.JWSSignatureKeyPrefix+id] == "":
			err = fmt.Errorf("token %s is not one of this cluster, or has expired: kubeadm token create --print-join-command makes another", id)
		default:
			return info, nil
		}
		before = err
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(retryInterval):
		}
	}
}

// verify returns what is signed, if it is signed with our token.
func (d *Discovery) verify(info *v1.ConfigMap) ([]byte, error) {
	id, secret, err := tokens.ParseToken(d.Token)
	if err != nil {
		return nil, err
	}
	text := info.Data[api.KubeConfigKey]
	if text == "" {
		return nil, fmt.Errorf("the ConfigMap kube-public/cluster-info has no %s: this cluster is not set up for tokens", api.KubeConfigKey)
	}
	if !jws.DetachedTokenIsValid(info.Data[api.JWSSignatureKeyPrefix+id], text, id, secret) {
		return nil, fmt.Errorf("the ConfigMap kube-public/cluster-info is not signed with the token %s: either the token's secret or the API server is wrong", id)
	}
	return []byte(text), nil
}

func readClusterInfo(text []byte) (Cluster, error) {
	const what = "the kubeconfig in the ConfigMap kube-public/cluster-info"
	config, err := clientcmd.Load(text)
	if err != nil {
		return Cluster{}, fmt.Errorf("%s: %w", what, err)
	}
	if len(config.Clusters) != 1 {
		return Cluster{}, fmt.Errorf("%s: it has %d clusters, and must have one", what, len(config.Clusters))
	}
	for _, c := range config.Clusters {
		if c.Server == "" || len(c.CertificateAuthorityData) == 0 {
			return Cluster{}, fmt.Errorf("%s: it must have server and certificate-authority-data", what)
		}
		return Cluster{Server: c.Server, CA: c.CertificateAuthorityData}, nil
	}
	return Cluster{}, errors.New(what) // unreachable: there is one
}

// checkPins wants one of the CA's certificates to have a pinned public key.
func checkPins(ca []byte, pins []string) error {
	certs, err := certutil.ParseCertsPEM(ca)
	if err != nil {
		return fmt.Errorf("the cluster's CA: %w", err)
	}
	var seen []string
	for _, cert := range certs {
		hash := Hash(cert)
		if slices.ContainsFunc(pins, func(p string) bool { return strings.EqualFold(p, hash) }) {
			return nil
		}
		seen = append(seen, hash)
	}
	return fmt.Errorf("the cluster's CA has the hash %s, which is not the one of --discovery-token-ca-cert-hash: this is not the cluster that was meant", strings.Join(seen, ", "))
}

// Hash is what pins a certificate's public key.
func Hash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}
