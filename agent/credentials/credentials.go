// Package credentials says with which credentials an image may be pulled for a
// pod, and remembers with which it was: the pod's pull secrets, the docker
// config of the node, and credential-provider plugins; and the kubelet's records
// of pulls, by which a pod is kept from an image that it could not pull itself.
//
// It owns KUBELET/image_manager and runs the plugins. agent/images asks it.
//
//	credentials.go Keyring: what there is for an image, in order
//	docker.go      docker configs, and which of their entries are for an image
//	config.go      CredentialProviderConfig
//	provider.go    one plugin, and what it has said
//	record.go      files about pulls, in the kubelet's format
//	verify.go      whether a pod may use an image that is there
package credentials

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/distribution/reference"
)

// Credential is one way to log in to a registry.
type Credential struct {
	Username, Password string
	// Secret or ServiceAccount tell whose it is; neither: any pod's of the node.
	Secret         *kubeletconfig.ImagePullSecret
	ServiceAccount *kubeletconfig.ImagePullServiceAccount
}

// Secrets gives pods the Secrets that they name.
type Secrets interface {
	Secret(ctx context.Context, pod *v1.Pod, name string) (*v1.Secret, error)
}

// Tokens makes tokens of service accounts, see agent/objects.Tokens.
type Tokens interface {
	Get(ctx context.Context, namespace, serviceAccount string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

// Config of a Keyring.
type Config struct {
	Secrets Secrets
	// Docker are the directories in which the node's docker config is looked for,
	// see DockerDirs.
	Docker DockerConfigDirs
	// ProviderConfig is a CredentialProviderConfig file, or a directory of them
	// (imageCredentialProviderConfigFile); empty: no plugins. The plugins are in
	// ProviderBinDir.
	ProviderConfig, ProviderBinDir string
	// Tokens and ServiceAccount are asked for plugins that want tokens; nil where
	// there is no API server.
	Tokens         Tokens
	ServiceAccount func(ctx context.Context, namespace, name string) (*v1.ServiceAccount, error)
	// Event tells of a pod's pull secrets that could not be had.
	Event func(pod *v1.Pod, eventType, reason, message string)
	// PluginRan is told of each run of a plugin, Configured of the hash of the
	// plugins' configuration; nil: nobody counts.
	PluginRan  func(name string, took time.Duration, err error)
	Configured func(hash string)
	Log        *slog.Logger
}

// Keyring finds credentials. It may be used by all workers at once.
type Keyring struct {
	config    Config
	providers []*provider

	mu       sync.Mutex
	node     entries // the node's docker config
	nodeRead time.Time
}

// New reads the configuration of the plugins and looks that they are there. It
// starts nothing.
func New(c Config) (*Keyring, error) {
	k := &Keyring{config: c}
	if c.ProviderConfig == "" {
		return k, nil
	}
	list, hash, err := readProviders(c.ProviderConfig)
	if err != nil {
		return nil, err
	}
	if c.Configured != nil {
		c.Configured(hash)
	}
	for i := range list {
		p, err := newProvider(list[i], c)
		if err != nil {
			return nil, err
		}
		k.providers = append(k.providers, p)
	}
	return k, nil
}

// Lookup returns the credentials to pull an image with, those to be tried first
// first: the pod's secrets, the node's, and the plugins', in order. None is not
// an error: the image is pulled without.
func (k *Keyring) Lookup(ctx context.Context, pod *v1.Pod, image string) ([]Credential, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse image name %q: %w", image, err)
	}
	repository := named.Name()
	own, err := k.secrets(ctx, pod)
	if err != nil {
		return nil, err
	}
	found := append(own.lookup(repository), k.nodeConfig().lookup(repository)...)
	var provided entries
	for _, p := range k.providers {
		got, err := p.provide(ctx, pod, repository)
		if err != nil {
			// Others may have what is needed, and the registry says if not.
			k.config.Log.Error("a credential provider gives no credentials", "provider", p.spec.Name, "image", repository, "pod", pod.Namespace+"/"+pod.Name, "err", err)
			continue
		}
		provided = append(provided, got...)
	}
	return append(found, provided.lookup(repository)...), nil
}

// secrets reads the docker configs of the pod's pull secrets. Those that cannot
// be had are told and do without: the image may be public.
func (k *Keyring) secrets(ctx context.Context, pod *v1.Pod) (entries, error) {
	var all entries
	var failed []string
	for _, ref := range pod.Spec.ImagePullSecrets {
		if ref.Name == "" {
			continue // the API allowed it once
		}
		secret, err := k.config.Secrets.Secret(ctx, pod, ref.Name)
		if err != nil {
			failed = append(failed, ref.Name)
			continue
		}
		got, err := secretEntries(secret)
		if err != nil {
			return nil, err
		}
		all = append(all, got...)
	}
	if len(failed) > 0 && k.config.Event != nil {
		k.config.Event(pod, v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", fmt.Sprintf(
			"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(failed, ", ")))
	}
	return all, nil
}

func secretEntries(secret *v1.Secret) (entries, error) {
	var config dockerConfig
	switch data := secret.Data; {
	case secret.Type == v1.SecretTypeDockerConfigJson && len(data[v1.DockerConfigJsonKey]) > 0:
		var outer struct {
			Auths dockerConfig `json:"auths"`
		}
		if err := json.Unmarshal(data[v1.DockerConfigJsonKey], &outer); err != nil {
			return nil, fmt.Errorf("pull secret %s/%s: %s: %w", secret.Namespace, secret.Name, v1.DockerConfigJsonKey, err)
		}
		config = outer.Auths
	case secret.Type == v1.SecretTypeDockercfg && len(data[v1.DockerConfigKey]) > 0:
		if err := json.Unmarshal(data[v1.DockerConfigKey], &config); err != nil {
			return nil, fmt.Errorf("pull secret %s/%s: %s: %w", secret.Namespace, secret.Name, v1.DockerConfigKey, err)
		}
	}
	return config.entries(func(e dockerEntry) Credential {
		return Credential{
			Username: e.Username, Password: e.Password,
			Secret: &kubeletconfig.ImagePullSecret{
				UID: string(secret.UID), Namespace: secret.Namespace, Name: secret.Name, CredentialHash: e.hash(),
			},
		}
	}), nil
}

// hash is the kubelet's of an AuthConfig (pkg/credentialprovider, hashAuthConfig):
// it is in the records that a kubelet in this one's place reads.
func (e dockerEntry) hash() string {
	content, err := json.Marshal(struct {
		Username string `json:"username,omitempty"`
		Password string `json:"password,omitempty"`
		Email    string `json:"email,omitempty"`
	}{e.Username, e.Password, e.Email})
	if err != nil {
		return "" // never: three strings; no record matches it
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
