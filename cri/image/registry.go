package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

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
	answer time.Duration // that a host has to begin one

	mu      sync.Mutex
	clients []*http.Client
}

// newRegistry makes the clients of one pull. A host that lets timeout pass is
// given up on by the pull's watch; so it has a little less to begin an answer,
// after which the next host is asked.
func newRegistry(ctx context.Context, certsDirs []string, creds credentials, timeout time.Duration) *registry {
	r := &registry{answer: timeout * 9 / 10}
	// The hosts of a namespace are worked out once a pull: each time makes new
	// connections and forgets the tokens.
	known := map[string][]docker.RegistryHost{}
	configured := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:      func(host string) (string, error) { return hostDir(certsDirs, host) },
		Credentials:  creds.secret,
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
			if err != nil {
				return nil, err
			}
			for i := range hosts {
				if token := creds.token(hosts[i].Host); token != "" {
					hosts[i].Authorizer = bearer(token)
				}
			}
			known[host] = hosts
			return hosts, nil
		},
	})
	return r
}

// track notes which host a request goes to, for errors that name it.
func (r *registry) track(client *http.Client) error {
	if t, ok := client.Transport.(*http.Transport); ok {
		t.ResponseHeaderTimeout = r.answer
	}
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

type hostKey struct{}

// withHost has the transport tell the host of each request made under ctx.
func withHost(ctx context.Context, asking func(host string)) context.Context {
	return context.WithValue(ctx, hostKey{}, asking)
}

type trackingTransport struct{ base http.RoundTripper }

func (t *trackingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if asking, ok := req.Context().Value(hostKey{}).(func(string)); ok {
		asking(req.URL.Host)
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
