package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// credentials are what one pull may show to which host.
type credentials struct {
	auth Auth
	host string // the only one that gets them; empty: all hosts of the pull
}

// credentialsFor are the caller's, or those that the file has for the
// repository where the caller brings none.
func credentialsFor(named reference.Named, auth Auth, file string) (credentials, error) {
	if auth == (Auth{}) && file != "" {
		var err error
		if auth, err = authFromFile(file, named); err != nil {
			return credentials{}, err
		}
	}
	if auth.Username == "" && auth.IdentityToken == "" && auth.Auth != "" {
		var err error
		if auth.Username, auth.Password, err = splitAuth(auth.Auth); err != nil {
			return credentials{}, err
		}
	}
	c := credentials{auth: auth}
	if auth.ServerAddress != "" {
		c.host = serverHost(auth.ServerAddress)
	}
	return c, nil
}

func (c credentials) isFor(host string) bool { return c.host == "" || c.host == host }

// secret answers for one host; an empty user with a secret is an identity
// token. The order of the fields is that of containerd's CRI.
func (c credentials) secret(host string) (user, secret string, err error) {
	switch {
	case !c.isFor(host):
		return "", "", nil
	case c.auth.Username != "":
		return c.auth.Username, c.auth.Password, nil
	}
	return "", c.auth.IdentityToken, nil
}

// token is a bearer token to be sent as it is, for who brings nothing else.
func (c credentials) token(host string) string {
	if !c.isFor(host) || c.auth.Username != "" || c.auth.IdentityToken != "" {
		return ""
	}
	return c.auth.RegistryToken
}

// bearer is a docker.Authorizer that sends one token.
type bearer string

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

// AddResponses is told that the token was refused; there is no other.
func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return errdefs.ErrNotImplemented
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

// authFromFile looks a repository up in a file as docker login writes it. Keys
// are registries or repositories below them, plain or as URLs; the longest that
// fits is used, as the kubelet does. Read anew for each pull: logins change.
func authFromFile(file string, named reference.Named) (Auth, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Auth{}, fmt.Errorf("credentials: %w", err)
	}
	var doc struct {
		Auths map[string]struct {
			Username      string `json:"username"`
			Password      string `json:"password"`
			Auth          string `json:"auth"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return Auth{}, fmt.Errorf("credentials: %s: %w", file, err)
	}
	var found Auth
	best := ""
	for key, entry := range doc.Auths {
		prefix := authKey(key)
		if len(prefix) <= len(best) || named.Name() != prefix && !strings.HasPrefix(named.Name(), prefix+"/") {
			continue
		}
		best = prefix
		found = Auth{
			Username: entry.Username, Password: entry.Password, Auth: entry.Auth,
			IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken,
		}
	}
	return found, nil
}

// authKey is the registry, or the repository, of a key in a docker config.json:
// https://index.docker.io/v1/ is docker.io.
func authKey(key string) string {
	_, rest, found := strings.Cut(key, "://")
	if !found {
		rest = key
	}
	rest = strings.TrimRight(rest, "/")
	rest = strings.TrimSuffix(strings.TrimSuffix(rest, "/v1"), "/v2")
	host, path, _ := strings.Cut(rest, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if path == "" {
		return host
	}
	return host + "/" + path
}
