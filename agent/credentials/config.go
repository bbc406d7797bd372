package credentials

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kubeletconfig "k8s.io/kubelet/config/v1"
	"sigs.k8s.io/yaml"
)

// pluginVersions are the versions of the plugins' protocol. What is sent and
// received is the same in all of them but for tokens, which are in v1 only.
var pluginVersions = []string{
	"credentialprovider.kubelet.k8s.io/v1",
	"credentialprovider.kubelet.k8s.io/v1alpha1",
	"credentialprovider.kubelet.k8s.io/v1beta1",
}

// readProviders reads a CredentialProviderConfig or all of those in a directory,
// in the order of their names, and the kubelet's hash of what they say
// (pkg/credentialprovider/plugin/config.go).
func readProviders(path string) (all []kubeletconfig.CredentialProvider, hash string, err error) {
	files, err := configFiles(path)
	if err != nil {
		return nil, "", fmt.Errorf("credential provider configuration: %w", err)
	}
	sum := sha256.New()
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, "", fmt.Errorf("credential provider configuration: %w", err)
		}
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(content))))
		sum.Write(content)
		config, err := readProviderFile(content)
		if err != nil {
			return nil, "", fmt.Errorf("credential provider configuration %s: %w", file, err)
		}
		for _, p := range config.Providers {
			if slices.ContainsFunc(all, func(o kubeletconfig.CredentialProvider) bool { return o.Name == p.Name }) {
				return nil, "", fmt.Errorf("credential provider configuration %s: duplicate provider name %q found in configuration file(s)", file, p.Name)
			}
			all = append(all, p)
		}
	}
	return all, fmt.Sprintf("sha256:%x", sum.Sum(nil)), nil
}

func configFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".json" || ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no configuration files (*.yaml, *.yml, *.json) found in directory %s", path)
	}
	return files, nil
}

func readProviderFile(content []byte) (*kubeletconfig.CredentialProviderConfig, error) {
	config := &kubeletconfig.CredentialProviderConfig{}
	if err := yaml.UnmarshalStrict(content, config); err != nil {
		return nil, err
	}
	group, version, _ := strings.Cut(config.APIVersion, "/")
	if config.Kind != "CredentialProviderConfig" || group != "kubelet.config.k8s.io" || !slices.Contains([]string{"v1", "v1beta1", "v1alpha1"}, version) {
		return nil, fmt.Errorf("apiVersion %q, kind %q: want kubelet.config.k8s.io/v1, CredentialProviderConfig", config.APIVersion, config.Kind)
	}
	return config, validate(config.Providers).ToAggregate()
}

func validate(providers []kubeletconfig.CredentialProvider) field.ErrorList {
	path := field.NewPath("providers")
	if len(providers) == 0 {
		return field.ErrorList{field.Required(path, "at least 1 item in plugins is required")}
	}
	var errs field.ErrorList
	for i := range providers {
		errs = append(errs, validateProvider(path.Index(i), &providers[i])...)
	}
	return errs
}

func validateProvider(path *field.Path, p *kubeletconfig.CredentialProvider) field.ErrorList {
	var errs field.ErrorList
	switch {
	case p.Name == "":
		errs = append(errs, field.Required(path.Child("name"), ""))
	case p.Name == "." || p.Name == "..":
		errs = append(errs, field.Invalid(path.Child("name"), p.Name, "provider name cannot be '"+p.Name+"'"))
	case strings.Contains(p.Name, "/"):
		errs = append(errs, field.Invalid(path.Child("name"), p.Name, "provider name cannot contain '/'"))
	case strings.Contains(p.Name, " "):
		errs = append(errs, field.Invalid(path.Child("name"), p.Name, "provider name cannot contain spaces"))
	}
	if p.APIVersion == "" {
		errs = append(errs, field.Required(path.Child("apiVersion"), ""))
	} else if !slices.Contains(pluginVersions, p.APIVersion) {
		errs = append(errs, field.NotSupported(path.Child("apiVersion"), p.APIVersion, pluginVersions))
	}
	if len(p.MatchImages) == 0 {
		errs = append(errs, field.Required(path.Child("matchImages"), "at least 1 item in matchImages is required"))
	}
	for i, pattern := range p.MatchImages {
		if _, ok := entryKey(pattern); !ok {
			errs = append(errs, field.Invalid(path.Child("matchImages").Index(i), pattern, "match image is invalid: not a host and a path"))
		}
	}
	switch d := p.DefaultCacheDuration; {
	case d == nil:
		errs = append(errs, field.Required(path.Child("defaultCacheDuration"), ""))
	case d.Duration < 0:
		errs = append(errs, field.Invalid(path.Child("defaultCacheDuration"), d.Duration.String(), "must be greater than or equal to 0"))
	}
	if p.TokenAttributes != nil {
		errs = append(errs, validateTokens(path.Child("tokenAttributes"), p)...)
	}
	return errs
}

func validateTokens(path *field.Path, p *kubeletconfig.CredentialProvider) field.ErrorList {
	var errs field.ErrorList
	a := p.TokenAttributes
	if a.ServiceAccountTokenAudience == "" {
		errs = append(errs, field.Required(path.Child("serviceAccountTokenAudience"), ""))
	}
	if a.RequireServiceAccount == nil {
		errs = append(errs, field.Required(path.Child("requireServiceAccount"), ""))
	} else if !*a.RequireServiceAccount && len(a.RequiredServiceAccountAnnotationKeys) > 0 {
		errs = append(errs, field.Forbidden(path.Child("requiredServiceAccountAnnotationKeys"), "requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set"))
	}
	if p.APIVersion != pluginVersions[0] {
		errs = append(errs, field.Forbidden(path, "tokenAttributes is only supported for "+pluginVersions[0]+" API version"))
	}
	errs = append(errs, validateKeys(path.Child("requiredServiceAccountAnnotationKeys"), a.RequiredServiceAccountAnnotationKeys)...)
	errs = append(errs, validateKeys(path.Child("optionalServiceAccountAnnotationKeys"), a.OptionalServiceAccountAnnotationKeys)...)
	for _, key := range a.OptionalServiceAccountAnnotationKeys {
		if slices.Contains(a.RequiredServiceAccountAnnotationKeys, key) {
			errs = append(errs, field.Invalid(path, key, "annotation keys cannot be both required and optional"))
		}
	}
	known := []kubeletconfig.ServiceAccountTokenCacheType{kubeletconfig.ServiceAccountServiceAccountTokenCacheType, kubeletconfig.TokenServiceAccountTokenCacheType}
	if a.CacheType == "" {
		errs = append(errs, field.Required(path.Child("cacheType"), "cacheType is required to be set when tokenAttributes is specified. Supported values are: ServiceAccount, Token"))
	} else if !slices.Contains(known, a.CacheType) {
		errs = append(errs, field.NotSupported(path.Child("cacheType"), a.CacheType, known))
	}
	return errs
}

func validateKeys(path *field.Path, keys []string) field.ErrorList {
	var errs field.ErrorList
	for i, key := range keys {
		for _, problem := range validation.IsQualifiedName(strings.ToLower(key)) {
			errs = append(errs, field.Invalid(path.Index(i), key, problem))
		}
		if slices.Contains(keys[:i], key) {
			errs = append(errs, field.Duplicate(path.Index(i), key))
		}
	}
	return errs
}

// strictJSON decodes one JSON value whose fields must all be known.
func strictJSON(content []byte, into any) error {
	d := json.NewDecoder(strings.NewReader(string(content)))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
