package access

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
)

// Groups and names that the API server gives, too (k8s.io/apiserver
// pkg/authentication/user).
const (
	anonymous            = "system:anonymous"
	groupUnauthenticated = "system:unauthenticated"
	groupAuthenticated   = "system:authenticated"
	credentialID         = "authentication.kubernetes.io/credential-id"
)

// TokenReviews asks the API server whose a token is; client-go's
// AuthenticationV1().TokenReviews() does.
type TokenReviews interface {
	Create(context.Context, *authenticationv1.TokenReview, metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// AuthnConfig is KubeletConfiguration.authentication.
type AuthnConfig struct {
	Anonymous bool
	// ClientCAFile has the certificates that client certificates may be signed
	// with; empty: none are accepted. It is read again when it changes.
	ClientCAFile string
	// Tokens is nil where tokens are not accepted.
	Tokens   TokenReviews
	TokenTTL time.Duration
}

// Authenticator tells who asks.
type Authenticator struct {
	config AuthnConfig
	tokens *cache[*User]

	mu    sync.Mutex
	roots *x509.CertPool
	file  os.FileInfo // that roots were read from
}

// NewAuthenticator reads the client CA file.
func NewAuthenticator(c AuthnConfig) (*Authenticator, error) {
	a := &Authenticator{config: c, tokens: newCache[*User]()}
	if c.ClientCAFile == "" {
		return a, nil
	}
	if _, err := a.clientCAs(); err != nil {
		return nil, err
	}
	return a, nil
}

// WantsCertificates tells whether clients are to be asked for certificates.
func (a *Authenticator) WantsCertificates() bool { return a.config.ClientCAFile != "" }

// Who is nil for somebody who does not say who he is, where that is not
// accepted. A client certificate goes before a token, as in the kubelet.
func (a *Authenticator) Who(r *http.Request) (*User, error) {
	var errs []error
	if a.WantsCertificates() && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		user, err := a.certificate(r.TLS.PeerCertificates)
		if err == nil {
			return authenticated(user), nil
		}
		errs = append(errs, err)
	}
	if token := bearer(r); token != "" && a.config.Tokens != nil {
		user, err := a.token(r.Context(), token)
		if err == nil && user != nil {
			return authenticated(user), nil
		}
		if err == nil {
			err = errors.New("the API server does not know the token")
		}
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if a.config.Anonymous {
		return &User{Name: anonymous, Groups: []string{groupUnauthenticated}}, nil
	}
	return nil, nil
}

func authenticated(u *User) *User {
	if slices.Contains(u.Groups, groupAuthenticated) || slices.Contains(u.Groups, groupUnauthenticated) {
		return u
	}
	with := *u
	with.Groups = append(slices.Clone(u.Groups), groupAuthenticated)
	return &with
}

func bearer(r *http.Request) string {
	kind, token, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if !strings.EqualFold(kind, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// certificate reads a user from a client certificate: the common name is his,
// the organizations are his groups.
func (a *Authenticator) certificate(chain []*x509.Certificate) (*User, error) {
	roots, err := a.clientCAs()
	if err != nil {
		return nil, err
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	leaf := chain[0]
	if _, err := leaf.Verify(opts); err != nil {
		return nil, fmt.Errorf("verify client certificate %q, serial %s: %w", leaf.Subject, leaf.SerialNumber, err)
	}
	if leaf.Subject.CommonName == "" {
		return nil, errors.New("client certificate without a common name")
	}
	sum := sha256.Sum256(leaf.Raw)
	return &User{
		Name: leaf.Subject.CommonName, Groups: leaf.Subject.Organization,
		Extra: map[string][]string{credentialID: {"X509SHA256=" + hex.EncodeToString(sum[:])}},
	}, nil
}

// clientCAs reads the CA file if it is another one than before. A new file that
// cannot be used does not take the old one's place.
func (a *Authenticator) clientCAs() (*x509.CertPool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	info, err := os.Stat(a.config.ClientCAFile)
	if err == nil && a.file != nil && os.SameFile(info, a.file) && info.ModTime().Equal(a.file.ModTime()) && info.Size() == a.file.Size() {
		return a.roots, nil
	}
	var roots *x509.CertPool
	if err == nil {
		roots, err = readCAs(a.config.ClientCAFile)
	}
	switch {
	case err == nil:
		a.roots, a.file = roots, info
	case a.roots == nil:
		return nil, fmt.Errorf("client CA file: %w", err)
	}
	return a.roots, nil
}

func readCAs(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", path, n+1, err)
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return pool, nil
}

// token asks the API server; nil is nobody. Tokens are remembered by their sum.
func (a *Authenticator) token(ctx context.Context, token string) (*User, error) {
	sum := sha256.Sum256([]byte(token))
	return a.tokens.get(ctx, string(sum[:]), func(ctx context.Context) (*User, time.Duration, error) {
		ask := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
		var review *authenticationv1.TokenReview
		err := retry(ctx, func() (err error) {
			review, err = a.config.Tokens.Create(ctx, ask, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return nil, 0, fmt.Errorf("ask the API server about a token: %w", err)
		}
		s := review.Status
		if !s.Authenticated {
			return nil, a.config.TokenTTL, nil
		}
		u := &User{Name: s.User.Username, UID: s.User.UID, Groups: s.User.Groups, Extra: map[string][]string{}}
		for k, v := range s.User.Extra {
			u.Extra[k] = v
		}
		return u, a.config.TokenTTL, nil
	})
}

// attempts is apiserver's DefaultAuthWebhookRetryBackoff.
var attempts = wait.Backoff{Duration: 500 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5}

// retry repeats what may go well the next time (apiserver's
// webhook.DefaultShouldRetry).
func retry(ctx context.Context, ask func() error) error {
	var last error
	err := wait.ExponentialBackoffWithContext(ctx, attempts, func(context.Context) (bool, error) {
		last = ask()
		if last == nil {
			return true, nil
		}
		_, delay := apierrors.SuggestsClientDelay(last)
		if delay || utilnet.IsConnectionReset(last) || utilnet.IsHTTP2ConnectionLost(last) || apierrors.IsInternalError(last) || apierrors.IsTooManyRequests(last) {
			return false, nil
		}
		return false, last
	})
	if err != nil && last != nil {
		return last
	}
	return err
}
