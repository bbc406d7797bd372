package credentials

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// nodeConfigFor is how long the node's docker config is used before it is read
// again.
const nodeConfigFor = 5 * time.Minute

// dockerConfig is the entries of a docker config by registry or repository.
type dockerConfig map[string]dockerEntry

type dockerEntry struct{ Username, Password, Email string }

// UnmarshalJSON takes an entry with a user name and a password, or with both in
// one field auth, which goes before.
func (e *dockerEntry) UnmarshalJSON(data []byte) error {
	var in struct {
		Username string `json:"username"`
		Password string `json:"password"`
		Email    string `json:"email"`
		Auth     string `json:"auth"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*e = dockerEntry{in.Username, in.Password, in.Email}
	if in.Auth == "" {
		return nil
	}
	encoding := base64.RawStdEncoding
	if strings.HasSuffix(strings.TrimSpace(in.Auth), "=") {
		encoding = base64.StdEncoding
	}
	both, err := encoding.DecodeString(in.Auth)
	if err != nil {
		return errors.New("the field auth is not base64") // err would quote it
	}
	var found bool
	if e.Username, e.Password, found = strings.Cut(string(both), ":"); !found {
		return errors.New("unable to parse auth field, must be formatted as base64(username:password)")
	}
	return nil
}

// entries are credentials with what they are for.
type entries []entry

type entry struct {
	at         string // host, or host/path; the host may have globs
	credential Credential
}

// entries sorts a config's by what they are for. What no URL can be made of is
// for nothing.
func (c dockerConfig) entries(credential func(dockerEntry) Credential) entries {
	var all entries
	for at, e := range c {
		if k, ok := entryKey(at); ok {
			all = append(all, entry{k, credential(e)})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.at, b.at) })
	return all
}

// entryKey is what an entry is for, without a scheme and the version of the
// registry's API that old configs have in it.
func entryKey(at string) (string, bool) {
	if !strings.HasPrefix(at, "https://") && !strings.HasPrefix(at, "http://") {
		at = "https://" + at
	}
	u, err := url.Parse(at)
	if err != nil {
		return "", false
	}
	p := u.Path
	if strings.HasPrefix(p, "/v2/") || strings.HasPrefix(p, "/v1/") {
		p = p[len("/v1"):]
	}
	if p == "/" {
		p = ""
	}
	return u.Host + p, true
}

// dockerHub is the entry for images that name no registry.
const dockerHub = "index.docker.io"

// lookup returns the credentials for a repository, those of more specific
// entries first and of equal ones in order (pkg/credentialprovider, keyring.go).
func (all entries) lookup(repository string) []Credential {
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b entry) int { return strings.Compare(b.at, a.at) })
	var found, hub []Credential
	for _, e := range sorted {
		if matches(e.at, repository) {
			found = append(found, e.credential)
		}
		if e.at == dockerHub {
			hub = append(hub, e.credential)
		}
	}
	if len(found) == 0 && onDockerHub(repository) {
		return hub
	}
	return found
}

// matches tells whether an image is below what a pattern names: the same number
// of parts of the host name, each of which may have globs, the same port, and a
// path that begins with the pattern's.
func matches(pattern, image string) bool {
	want, err := url.Parse("https://" + pattern)
	if err != nil {
		return false
	}
	is, err := url.Parse("https://" + image)
	if err != nil {
		return false
	}
	wantParts, wantPort := hostParts(want.Host)
	isParts, isPort := hostParts(is.Host)
	if wantPort != isPort || len(wantParts) != len(isParts) || !strings.HasPrefix(is.Path, want.Path) {
		return false
	}
	for i := range wantParts {
		if ok, err := path.Match(wantParts[i], isParts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func hostParts(host string) (parts []string, port string) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = host, ""
	}
	return strings.Split(name, "."), port
}

// onDockerHub tells whether an image is of the registry that needs no name.
func onDockerHub(image string) bool {
	host, _, found := strings.Cut(image, "/")
	switch {
	case host == "":
		return false
	case !found, host == "docker.io", host == dockerHub:
		return true
	}
	return !strings.ContainsAny(host, ".:")
}

// DockerConfigDirs are the directories that may hold a docker config, in the
// order in which they are looked at: config.json is sought in all of JSON before
// .dockercfg is in all of Legacy.
type DockerConfigDirs struct{ JSON, Legacy []string }

// DockerDirs are the directories that the kubelet looks at: its own, the working
// directory, the home directory, and the root.
func DockerDirs(kubeletDir string) DockerConfigDirs {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/" // no HOME, as in a service: the root is looked at anyway
	}
	return DockerConfigDirs{
		JSON:   []string{kubeletDir, ".", filepath.Join(home, ".docker"), "/.docker"},
		Legacy: []string{kubeletDir, ".", home, "/"},
	}
}

// nodeConfig is the docker config of the node. It is looked for again when it
// has become old.
func (k *Keyring) nodeConfig() entries {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.nodeRead.IsZero() || time.Since(k.nodeRead) > nodeConfigFor {
		k.nodeRead = time.Now()
		k.node = k.readNodeConfig().entries(func(e dockerEntry) Credential {
			return Credential{Username: e.Username, Password: e.Password}
		})
	}
	return k.node
}

// readNodeConfig returns the first config that can be read.
func (k *Keyring) readNodeConfig() dockerConfig {
	for _, dir := range k.config.Docker.JSON {
		var outer struct {
			Auths dockerConfig `json:"auths"`
		}
		if k.readJSON(filepath.Join(dir, "config.json"), &outer) {
			return outer.Auths
		}
	}
	for _, dir := range k.config.Docker.Legacy {
		var config dockerConfig
		if k.readJSON(filepath.Join(dir, ".dockercfg"), &config) {
			return config
		}
	}
	return nil
}

func (k *Keyring) readJSON(file string, into any) bool {
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil {
		if err = json.Unmarshal(content, into); err != nil {
			err = fmt.Errorf("no docker config: %w", err)
		}
	}
	if err != nil {
		k.config.Log.Warn("a docker config is passed over", "path", file, "err", err)
	}
	return err == nil
}
