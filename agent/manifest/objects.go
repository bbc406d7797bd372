package manifest

import (
	"encoding/json"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxObjectBytes is the most data a ConfigMap or Secret may hold.
const maxObjectBytes = v1.MaxSecretSize

func (p *parser) configMap(doc document, cm *v1.ConfigMap) {
	setDefault(&cm.Namespace, metav1.NamespaceDefault)
	key := Key{cm.Namespace, cm.Name}
	errs := validateMeta(&cm.ObjectMeta, field.NewPath("metadata"))
	size := 0
	for k, v := range cm.Data {
		errs = append(errs, validateDataKey(k, field.NewPath("data"))...)
		if _, dup := cm.BinaryData[k]; dup {
			errs = append(errs, field.Invalid(field.NewPath("binaryData").Key(k), k, "duplicate of key present in data"))
		}
		size += len(v)
	}
	for k, v := range cm.BinaryData {
		errs = append(errs, validateDataKey(k, field.NewPath("binaryData"))...)
		size += len(v)
	}
	if size > maxObjectBytes {
		errs = append(errs, field.TooLong(field.NewPath("data"), "", maxObjectBytes))
	}
	p.rejectAll(doc, sorted(errs))
	if p.claimName(doc, "ConfigMap", key) {
		p.set.ConfigMaps[key] = cm
	}
}

func (p *parser) secret(doc document, s *v1.Secret) {
	setDefault(&s.Namespace, metav1.NamespaceDefault)
	setDefault(&s.Type, v1.SecretTypeOpaque)
	key := Key{s.Namespace, s.Name}
	errs := validateMeta(&s.ObjectMeta, field.NewPath("metadata"))
	for k := range s.Data {
		errs = append(errs, validateDataKey(k, field.NewPath("data"))...)
	}
	for k, v := range s.StringData { // wins over data, as in an API server
		errs = append(errs, validateDataKey(k, field.NewPath("stringData"))...)
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
	size := 0
	for _, v := range s.Data {
		size += len(v)
	}
	if size > maxObjectBytes {
		errs = append(errs, field.TooLong(field.NewPath("data"), "", maxObjectBytes))
	}
	errs = append(errs, validateSecretType(s)...)
	p.rejectAll(doc, sorted(errs))
	if p.claimName(doc, "Secret", key) {
		p.set.Secrets[key] = s
	}
}

func validateDataKey(key string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsConfigMapKey(key) {
		errs = append(errs, field.Invalid(path.Key(key), key, msg))
	}
	return errs
}

// validateSecretType asks for the keys that a Secret's type promises.
func validateSecretType(s *v1.Secret) field.ErrorList {
	var errs field.ErrorList
	data := field.NewPath("data")
	require := func(keys ...string) {
		for _, k := range keys {
			if _, ok := s.Data[k]; !ok {
				errs = append(errs, field.Required(data.Key(k), "for type "+string(s.Type)))
			}
		}
	}
	requireJSON := func(key string) {
		require(key)
		if v, ok := s.Data[key]; ok && !json.Valid(v) {
			errs = append(errs, field.Invalid(data.Key(key), "<secret contents redacted>", "must be JSON"))
		}
	}
	switch s.Type {
	case v1.SecretTypeTLS:
		require(v1.TLSCertKey, v1.TLSPrivateKeyKey)
	case v1.SecretTypeSSHAuth:
		require(v1.SSHAuthPrivateKey)
	case v1.SecretTypeDockerConfigJson:
		requireJSON(v1.DockerConfigJsonKey)
	case v1.SecretTypeDockercfg:
		requireJSON(v1.DockerConfigKey)
	case v1.SecretTypeBasicAuth:
		_, user := s.Data[v1.BasicAuthUsernameKey]
		_, password := s.Data[v1.BasicAuthPasswordKey]
		if !user && !password {
			require(v1.BasicAuthUsernameKey, v1.BasicAuthPasswordKey)
		}
	}
	return errs
}

// claim binds a PersistentVolumeClaim to a directory: the one its annotation
// names, or NAMESPACE/NAME below Options.ClaimsDir.
func (p *parser) claim(doc document, c *v1.PersistentVolumeClaim) {
	setDefault(&c.Namespace, metav1.NamespaceDefault)
	key := Key{c.Namespace, c.Name}
	errs := validateMeta(&c.ObjectMeta, field.NewPath("metadata"))
	errs = append(errs, validateClaimSpec(&c.Spec, field.NewPath("spec"))...)

	annotation := field.NewPath("metadata", "annotations").Key(AnnotationHostPath)
	dir, named := c.Annotations[AnnotationHostPath]
	switch {
	case named && !path.IsAbs(dir):
		errs = append(errs, field.Invalid(annotation, dir, "must be an absolute path"))
	case named:
		errs = append(errs, noBacksteps(dir, annotation)...)
		dir = filepath.Clean(dir)
	case p.opts.ClaimsDir == "":
		errs = append(errs, field.Required(annotation, "names the directory to bind to; this node has no directory for claims"))
	default:
		dir = filepath.Join(p.opts.ClaimsDir, c.Namespace, c.Name)
	}
	p.rejectAll(doc, errs)
	if p.claimName(doc, "PersistentVolumeClaim", key) {
		p.set.Claims[key] = Claim{HostPath: dir, ReadOnly: readOnlyModes(c.Spec.AccessModes)}
	}
}

func validateClaimSpec(spec *v1.PersistentVolumeClaimSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	modes := []v1.PersistentVolumeAccessMode{v1.ReadOnlyMany, v1.ReadWriteMany, v1.ReadWriteOnce, v1.ReadWriteOncePod}
	if len(spec.AccessModes) == 0 {
		errs = append(errs, field.Required(path.Child("accessModes"), "at least 1 access mode is required"))
	}
	for i, m := range spec.AccessModes {
		if !slices.Contains(modes, m) {
			errs = append(errs, field.NotSupported(path.Child("accessModes").Index(i), m, modes))
		}
	}
	storage := path.Child("resources", "requests").Key("storage")
	if q, ok := spec.Resources.Requests[v1.ResourceStorage]; !ok {
		errs = append(errs, field.Required(storage, "a cluster asks for it; no size is enforced on a directory"))
	} else if q.Sign() <= 0 {
		errs = append(errs, field.Invalid(storage, q.String(), "must be greater than zero"))
	}
	if spec.VolumeMode != nil && *spec.VolumeMode != v1.PersistentVolumeFilesystem {
		errs = append(errs, field.NotSupported(path.Child("volumeMode"), *spec.VolumeMode, []v1.PersistentVolumeMode{v1.PersistentVolumeFilesystem}))
	}
	if spec.DataSource != nil || spec.DataSourceRef != nil {
		errs = append(errs, field.Forbidden(path.Child("dataSource"), "not supported by this version"))
	}
	return errs
}

// readOnlyModes: a claim that can only be had ReadOnlyMany is mounted read-only.
func readOnlyModes(modes []v1.PersistentVolumeAccessMode) bool {
	for _, m := range modes {
		if m != v1.ReadOnlyMany {
			return false
		}
	}
	return len(modes) > 0
}

func (p *parser) service(doc document, s *v1.Service) {
	setDefault(&s.Namespace, metav1.NamespaceDefault)
	setServiceDefaults(s)
	s.Status = v1.ServiceStatus{}
	key := Key{s.Namespace, s.Name}
	p.rejectAll(doc, validateService(s))
	if p.claimName(doc, "Service", key) {
		p.set.Services[key] = s
	}
}

// noBacksteps refuses ".." in a path.
func noBacksteps(p string, path *field.Path) field.ErrorList {
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return field.ErrorList{field.Invalid(path, p, "must not contain '..'")}
		}
	}
	return nil
}
