package credentials

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1"
	recordconfig "k8s.io/kubelet/config/v1beta1"
	pluginapi "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
)

const (
	pluginTimeout = time.Minute
	// maxAnswer bounds what a plugin may say, in bytes.
	maxAnswer = 1 << 20
	// global is the key of what a plugin gives for all its images; no image has
	// such a name.
	global = "<global>"
)

// provider is one credential-provider plugin: a program that is given an image
// and prints credentials (pkg/credentialprovider/plugin/plugin.go).
type provider struct {
	spec   kubeletconfig.CredentialProvider
	config Config
	group  singleflight.Group

	mu    sync.Mutex
	known map[string]answer
}

// answer is what a plugin said, until it ends.
type answer struct {
	auth    map[string]pluginapi.AuthConfig
	expires time.Time
}

func newProvider(spec kubeletconfig.CredentialProvider, c Config) (*provider, error) {
	program := filepath.Join(c.ProviderBinDir, spec.Name)
	if _, err := exec.LookPath(program); err != nil {
		return nil, fmt.Errorf("credential provider %s: %w: put the plugin into imageCredentialProviderBinDir", spec.Name, err)
	}
	if spec.TokenAttributes != nil && (c.Tokens == nil || c.ServiceAccount == nil) {
		return nil, fmt.Errorf("credential provider %s: tokenAttributes need an API server, which this node has not", spec.Name)
	}
	return &provider{spec: spec, config: c, known: map[string]answer{}}, nil
}

// identity is the service account that a plugin is asked for.
type identity struct {
	account     *recordconfig.ImagePullServiceAccount // nil: none
	token       string
	annotations map[string]string
}

// provide returns what the plugin has for an image; nothing where it is not for
// this image or not for this pod.
func (p *provider) provide(ctx context.Context, pod *v1.Pod, image string) (entries, error) {
	if !slices.ContainsFunc(p.spec.MatchImages, func(pattern string) bool { return matches(pattern, image) }) {
		return nil, nil
	}
	who, ok, err := p.identify(ctx, pod)
	if err != nil || !ok {
		return nil, err
	}
	auth, err := p.ask(ctx, image, who)
	if err != nil {
		return nil, err
	}
	var all entries
	for _, at := range slices.Sorted(maps.Keys(auth)) {
		if k, ok := entryKey(at); ok {
			all = append(all, entry{k, Credential{Username: auth[at].Username, Password: auth[at].Password, ServiceAccount: who.account}})
		}
	}
	return all, nil
}

// identify gets the token and the annotations that the plugin wants; ok is
// false for a pod that it is not to be asked for.
func (p *provider) identify(ctx context.Context, pod *v1.Pod) (who identity, ok bool, err error) {
	wants, name := p.spec.TokenAttributes, pod.Spec.ServiceAccountName
	switch {
	case wants == nil:
		return identity{}, true, nil
	case name == "":
		return identity{}, !*wants.RequireServiceAccount, nil
	}
	account, err := p.config.ServiceAccount(ctx, pod.Namespace, name)
	if err != nil {
		return identity{}, false, fmt.Errorf("failed to get service account: %w", err)
	}
	who.annotations = map[string]string{}
	for _, key := range wants.RequiredServiceAccountAnnotationKeys {
		value, found := account.Annotations[key]
		if !found {
			return identity{}, false, nil // how an account opts in
		}
		who.annotations[key] = value
	}
	for _, key := range wants.OptionalServiceAccountAnnotationKeys {
		if value, found := account.Annotations[key]; found {
			who.annotations[key] = value
		}
	}
	token, err := p.config.Tokens.Get(ctx, pod.Namespace, name, &authenticationv1.TokenRequest{
		ObjectMeta: metav1.ObjectMeta{UID: account.UID}, // refused for an account made anew
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:      []string{wants.ServiceAccountTokenAudience},
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		},
	})
	if err != nil {
		return identity{}, false, fmt.Errorf("failed to get service account token: %w", err)
	}
	who.token = token.Status.Token
	who.account = &recordconfig.ImagePullServiceAccount{UID: string(account.UID), Namespace: pod.Namespace, Name: name}
	return who, true, nil
}

// ask returns what is known for the image, its registry or all, and otherwise
// runs the plugin, once for all who ask the same meanwhile.
func (p *provider) ask(ctx context.Context, image string, who identity) (map[string]pluginapi.AuthConfig, error) {
	registry, _, _ := strings.Cut(image, "/")
	of := p.cacheKey(who)
	for _, base := range []string{image, registry, global} {
		if auth, ok := p.recall(base + "\x00" + of); ok {
			return auth, nil
		}
	}
	flight := fmt.Sprintf("%s\x00%x\x00%s", image, sha256.Sum256([]byte(who.token)), of)
	got, err, _ := p.group.Do(flight, func() (any, error) {
		// The plugin works for all who wait: one of them giving up is not the end.
		return p.run(context.WithoutCancel(ctx), pluginapi.CredentialProviderRequest{
			TypeMeta: metav1.TypeMeta{Kind: "CredentialProviderRequest", APIVersion: p.spec.APIVersion},
			Image:    image, ServiceAccountToken: who.token, ServiceAccountAnnotations: who.annotations,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("failed to get credential from external registry credential provider: %w", err)
	}
	response := got.(*pluginapi.CredentialProviderResponse)
	if who.token != "" && p.spec.TokenAttributes.CacheType != kubeletconfig.TokenServiceAccountTokenCacheType {
		for _, auth := range response.Auth {
			if auth.Password == who.token {
				return nil, errors.New("credential provider plugin returned the service account token as the password which is not allowed when service account cache type is not set to 'Token'")
			}
		}
	}
	var base string
	switch response.CacheKeyType {
	case pluginapi.ImagePluginCacheKeyType:
		base = image
	case pluginapi.RegistryPluginCacheKeyType:
		base = registry
	case pluginapi.GlobalPluginCacheKeyType:
		base = global
	default:
		return nil, fmt.Errorf("credential provider plugin did not return a valid cacheKeyType: %q", response.CacheKeyType)
	}
	lasts := p.spec.DefaultCacheDuration.Duration
	if response.CacheDuration != nil {
		lasts = response.CacheDuration.Duration
	}
	p.keep(base+"\x00"+of, response.Auth, lasts)
	return response.Auth, nil
}

// cacheKey is whom an answer is good for: everybody, a service account, or who
// has this very token.
func (p *provider) cacheKey(who identity) string {
	if who.account == nil {
		return ""
	}
	parts := []string{who.account.Namespace, who.account.Name, who.account.UID}
	for _, k := range slices.Sorted(maps.Keys(who.annotations)) {
		parts = append(parts, k, who.annotations[k])
	}
	if p.spec.TokenAttributes.CacheType == kubeletconfig.TokenServiceAccountTokenCacheType {
		parts = append(parts, fmt.Sprintf("%x", sha256.Sum256([]byte(who.token))))
	}
	return fmt.Sprintf("%q", parts)
}

func (p *provider) recall(k string) (map[string]pluginapi.AuthConfig, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.known[k]
	return known.auth, ok && time.Now().Before(known.expires)
}

func (p *provider) keep(k string, auth map[string]pluginapi.AuthConfig, lasts time.Duration) {
	if lasts <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(p.known, func(_ string, a answer) bool { return !now.Before(a.expires) })
	p.known[k] = answer{auth, now.Add(lasts)}
}

// run runs the plugin. What it prints may be credentials and is not quoted.
func (p *provider) run(ctx context.Context, request pluginapi.CredentialProviderRequest) (*pluginapi.CredentialProviderResponse, error) {
	input, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("failed to encode auth request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	var stdout, stderr limited
	cmd := exec.CommandContext(ctx, filepath.Join(p.config.ProviderBinDir, p.spec.Name), p.spec.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(input, '\n')), &stdout, &stderr
	cmd.WaitDelay = time.Second // a child of its own may hold the pipes
	cmd.Env = os.Environ()
	for _, v := range p.spec.Env {
		cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
	}
	began := time.Now()
	err = cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if p.config.PluginRan != nil {
		p.config.PluginRan(p.spec.Name, time.Since(began), err)
	}
	if err != nil {
		return nil, fmt.Errorf("error execing credential provider plugin %s for image %s: %w: %s", p.spec.Name, request.Image, err, stderr.Bytes())
	}
	response := &pluginapi.CredentialProviderResponse{}
	if err := strictJSON(stdout.Bytes(), response); err != nil {
		return nil, errors.New("error decoding credential provider plugin response from stdout")
	}
	if response.Kind != "CredentialProviderResponse" {
		return nil, fmt.Errorf("failed to decode CredentialProviderResponse, unexpected Kind: %q", response.Kind)
	}
	if response.APIVersion != p.spec.APIVersion {
		return nil, fmt.Errorf("apiVersion from credential plugin response did not match expected apiVersion:%s, actual apiVersion:%s", p.spec.APIVersion, response.APIVersion)
	}
	return response, nil
}

// limited is a buffer that refuses more than maxAnswer bytes.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxAnswer {
		return 0, fmt.Errorf("the plugin printed more than %d bytes", maxAnswer)
	}
	return l.Buffer.Write(p)
}
