package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// registry talks to the registry of one pull: its mirrors and TLS settings
// come from hosts.toml, its credentials from the caller.
type registry struct {
	remotes.Resolver

	mu      sync.Mutex
	clients []*http.Client
}

func newRegistry(ctx context.Context, certsDirs []string, auth Auth) (*registry, error) {
	if err := auth.check(); err != nil {
		return nil, err
	}
	r := &registry{}
	// The hosts of a namespace are worked out once a pull: each time makes new
	// connections and forgets the tokens.
	known := map[string][]docker.RegistryHost{}
	configured := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:      func(host string) (string, error) { return hostDir(certsDirs, host) },
		Credentials:  auth.credentials,
		UpdateClient: r.track,
	})
	var mu sync.Mutex
	r.Resolver = docker.NewResolver(docker.ResolverOptions{
		Headers: http.Header{"User-Agent": []string{"berth"}},
		Hosts: func(host string) ([]docker.RegistryHost, error) {
			mu.Lock()
			defer mu.Unlock()
			if hosts, ok := known[host]; ok {
				return hosts, nil
			}
			hosts, err := configured(host)
			if err == nil {
				known[host] = hosts
			}
			return hosts, err
		},
	})
	return r, nil
}

// track notes which host a request goes to, for errors that name it.
func (r *registry) track(client *http.Client) error {
	client.Transport = &trackingTransport{client.Transport}
	r.mu.Lock()
	r.clients = append(r.clients, client)
	r.mu.Unlock()
	return nil
}

// close drops the connections that are kept for a next request.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, client := range r.clients {
		client.CloseIdleConnections()
	}
}

// hostDir finds the directory with hosts.toml or certificates of a registry:
// the first of the configured directories that has one, as
// DIR/host_port_, DIR/host:port, DIR/host or DIR/_default.
func hostDir(certsDirs []string, host string) (string, error) {
	for _, root := range certsDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("registry configuration of %s: %w", host, err)
		}
		return dir, checkHostsFile(filepath.Join(dir, "hosts.toml"))
	}
	return "", errdefs.ErrNotFound
}

// checkHostsFile reports a file that does not parse. The library would log it
// and go on to the upstream registry, which may not be what a mirror's owner wants.
func checkHostsFile(name string) error {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("registry configuration: %w", err)
	}
	var doc map[string]any
	if err := toml.Unmarshal(b, &doc); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			row, _ := at.Position()
			return fmt.Errorf("registry configuration %s line %d: %w", name, row, err)
		}
		return fmt.Errorf("registry configuration %s: %w", name, err)
	}
	return nil
}

// check refuses credentials that would otherwise be dropped without a word.
func (a Auth) check() error {
	if a.RegistryToken != "" && a.Username == "" && a.IdentityToken == "" && a.Auth == "" {
		return fmt.Errorf("credentials: registry_token is not supported, give a user and password or an identity token: %w", errdefs.ErrInvalidArgument)
	}
	if a.Username == "" && a.IdentityToken == "" && a.Auth != "" {
		if _, _, err := splitAuth(a.Auth); err != nil {
			return err
		}
	}
	return nil
}

// credentials answers for one host; an empty user with a secret is an
// identity token. Credentials that name a server go to no other host. The
// order of the fields is that of containerd's CRI.
func (a Auth) credentials(host string) (user, secret string, err error) {
	if a.ServerAddress != "" && serverHost(a.ServerAddress) != host {
		return "", "", nil
	}
	switch {
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth != "":
		return splitAuth(a.Auth)
	}
	return "", "", nil
}

// serverHost is the host of a server address, which may be a URL or just a
// host. Docker's address for its hub differs from the host that serves it.
func serverHost(address string) string {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	if u.Host == "index.docker.io" || u.Host == "docker.io" {
		return "registry-1.docker.io"
	}
	return u.Host
}

func splitAuth(auth string) (user, password string, err error) {
	decoded, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		return "", "", fmt.Errorf("credentials: auth is not base64: %w", errdefs.ErrInvalidArgument)
	}
	user, password, ok := strings.Cut(string(decoded), ":")
	if !ok {
		return "", "", fmt.Errorf("credentials: auth is not user:password: %w", errdefs.ErrInvalidArgument)
	}
	return user, strings.TrimRight(password, "\x00"), nil
}

type hostKey struct{}

// withHost lets the transport write down the host of the last request made under ctx.
func withHost(ctx context.Context, host *atomic.Pointer[string]) context.Context {
	return context.WithValue(ctx, hostKey{}, host)
}

type trackingTransport struct{ base http.RoundTripper }

func (t *trackingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if host, ok := req.Context().Value(hostKey{}).(*atomic.Pointer[string]); ok {
		host.Store(&req.URL.Host)
	}
	return t.base.RoundTrip(req)
}

// CloseIdleConnections makes http.Client's method reach the transport below.
func (t *trackingTransport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// explainRemote words a registry's answer for the person who has to act on it.
func explainRemote(err error, host string) error {
	if host == "" {
		host = "the registry"
	}
	var status remoteerrors.ErrUnexpectedStatus
	denied := errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden)
	if denied || errors.Is(err, docker.ErrInvalidAuthorization) {
		return fmt.Errorf("%s denies access: check the image name and the pull credentials: %w", host, errdefs.ErrUnauthenticated)
	}
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("not found at %s: %w", host, errdefs.ErrNotFound)
	}
	if status.StatusCode != 0 {
		return fmt.Errorf("%s answers %s: %w", host, status.Status, errdefs.ErrUnavailable)
	}
	var request *url.Error
	if errors.As(err, &request) {
		return fmt.Errorf("ask %s: %w", host, request.Err)
	}
	return err
}
