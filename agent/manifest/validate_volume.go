package manifest

import (
	"fmt"
	"path"
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/berth-io/berth/csi/volume"
)

const supportedVolumes = "supported are configMap, downwardAPI, emptyDir, hostPath, image, persistentVolumeClaim, projected, secret"

// validateVolumes returns the pod's volumes by name, the faulty ones included:
// a mount of one is not another fault.
func validateVolumes(spec *v1.PodSpec, path *field.Path) (map[string]*v1.Volume, field.ErrorList) {
	var errs field.ErrorList
	byName := make(map[string]*v1.Volume, len(spec.Volumes))
	for i := range spec.Volumes {
		vol, at := &spec.Volumes[i], path.Index(i)
		errs = append(errs, validLabel(vol.Name, at.Child("name"))...)
		if _, dup := byName[vol.Name]; dup {
			errs = append(errs, field.Duplicate(at.Child("name"), vol.Name))
		}
		byName[vol.Name] = vol
		errs = append(errs, validateVolumeSource(&vol.VolumeSource, spec, at)...)
	}
	return byName, errs
}

func validateVolumeSource(s *v1.VolumeSource, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	kinds := sourceKinds(s)
	if len(kinds) > 1 {
		return field.ErrorList{field.Forbidden(path.Child(kinds[1]), "may not specify more than 1 volume type")}
	}
	at := path.Child(kinds[0])
	switch {
	case s.EmptyDir != nil:
		errs = append(errs, validateEmptyDir(s.EmptyDir, spec, at)...)
	case s.HostPath != nil:
		errs = append(errs, validateHostPath(s.HostPath, at)...)
	case s.ConfigMap != nil:
		errs = append(errs, validSubdomain(s.ConfigMap.Name, at.Child("name"))...)
		errs = append(errs, validateItems(s.ConfigMap.Items, s.ConfigMap.DefaultMode, at)...)
	case s.Secret != nil:
		errs = append(errs, validSubdomain(s.Secret.SecretName, at.Child("secretName"))...)
		errs = append(errs, validateItems(s.Secret.Items, s.Secret.DefaultMode, at)...)
	case s.DownwardAPI != nil:
		errs = append(errs, validateMode(s.DownwardAPI.DefaultMode, at.Child("defaultMode"))...)
		errs = append(errs, validateDownward(s.DownwardAPI.Items, spec, at)...)
	case s.Projected != nil:
		errs = append(errs, validateProjected(s.Projected, spec, at)...)
	case s.PersistentVolumeClaim != nil:
		errs = append(errs, validSubdomain(s.PersistentVolumeClaim.ClaimName, at.Child("claimName"))...)
	case s.Image != nil:
		errs = append(errs, validateImage(s.Image.Reference, at.Child("reference"))...)
		errs = append(errs, oneOf(s.Image.PullPolicy, at.Child("pullPolicy"), v1.PullAlways, v1.PullIfNotPresent, v1.PullNever)...)
	default:
		errs = append(errs, field.Forbidden(at, "volumes of this kind are "+unsupported+"; "+supportedVolumes))
	}
	return errs
}

// sourceKinds names the fields of a volume source that are set; defaults see to it that one is.
func sourceKinds(s *v1.VolumeSource) []string {
	var kinds []string
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if !v.Field(i).IsNil() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			kinds = append(kinds, name)
		}
	}
	return kinds
}

// validateEmptyDir also checks what is the kubelet's to say when it makes the
// volume.
func validateEmptyDir(s *v1.EmptyDirVolumeSource, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.SizeLimit != nil && s.SizeLimit.Sign() < 0 {
		errs = append(errs, field.Invalid(path.Child("sizeLimit"), s.SizeLimit.String(), "must be greater than or equal to 0"))
	}
	switch m := s.Medium; {
	case m == v1.StorageMediumDefault, m == v1.StorageMediumMemory:
	case m == v1.StorageMediumHugePages, strings.HasPrefix(string(m), string(v1.StorageMediumHugePagesPrefix)):
		if _, err := volume.HugePageSize(m, spec); err != nil {
			errs = append(errs, field.Invalid(path.Child("medium"), m, err.Error()))
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("medium"), m,
			[]v1.StorageMedium{v1.StorageMediumDefault, v1.StorageMediumMemory, v1.StorageMediumHugePages, v1.StorageMediumHugePagesPrefix + "SIZE"}))
	}
	return errs
}

func validateHostPath(s *v1.HostPathVolumeSource, path *field.Path) field.ErrorList {
	if s.Path == "" {
		return field.ErrorList{field.Required(path.Child("path"), "")}
	}
	errs := noBacksteps(s.Path, path.Child("path"))
	if !strings.HasPrefix(s.Path, "/") {
		errs = append(errs, field.Invalid(path.Child("path"), s.Path, "must be an absolute path"))
	}
	return append(errs, oneOf(*s.Type, path.Child("type"),
		v1.HostPathUnset, v1.HostPathBlockDev, v1.HostPathCharDev, v1.HostPathDirectory, v1.HostPathDirectoryOrCreate,
		v1.HostPathFile, v1.HostPathFileOrCreate, v1.HostPathSocket)...)
}

func validateMode(mode *int32, path *field.Path) field.ErrorList {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		return field.ErrorList{field.Invalid(path, *mode, "must be a number between 0 and 0777 (octal), both inclusive")}
	}
	return nil
}

func validateItems(items []v1.KeyToPath, defaultMode *int32, path *field.Path) field.ErrorList {
	errs := validateMode(defaultMode, path.Child("defaultMode"))
	for i, item := range items {
		at := path.Child("items").Index(i)
		if item.Key == "" {
			errs = append(errs, field.Required(at.Child("key"), ""))
		}
		errs = append(errs, validateFileName(item.Path, at.Child("path"))...)
		errs = append(errs, validateMode(item.Mode, at.Child("mode"))...)
	}
	return errs
}

// validateFileName checks where in a volume a file is written. Names that
// start with ".." are the volume's own (..data).
func validateFileName(name string, at *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	errs := relativePath(name, at)
	if strings.HasPrefix(name, "..") && !strings.HasPrefix(name, "../") && name != ".." {
		errs = append(errs, field.Invalid(at, name, "must not start with '..'"))
	}
	return errs
}

// relativePath refuses what could lead out of a directory.
func relativePath(name string, at *field.Path) field.ErrorList {
	if path.IsAbs(name) {
		return field.ErrorList{field.Invalid(at, name, "must be a relative path")}
	}
	return noBacksteps(name, at)
}

var volumeFieldPaths = []string{
	"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid",
}

func validateDownward(items []v1.DownwardAPIVolumeFile, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, item := range items {
		at := path.Child("items").Index(i)
		errs = append(errs, validateFileName(item.Path, at.Child("path"))...)
		errs = append(errs, validateMode(item.Mode, at.Child("mode"))...)
		switch {
		case item.FieldRef != nil && item.ResourceFieldRef != nil:
			errs = append(errs, field.Invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
		case item.FieldRef != nil:
			errs = append(errs, validateFieldRef(item.FieldRef, volumeFieldPaths, at.Child("fieldRef"))...)
		case item.ResourceFieldRef != nil:
			ref := at.Child("resourceFieldRef")
			errs = append(errs, validateResourceFieldRef(item.ResourceFieldRef, true, ref)...)
			if name := item.ResourceFieldRef.ContainerName; name != "" && !hasContainer(spec, name) {
				errs = append(errs, field.NotFound(ref.Child("containerName"), name))
			}
		default:
			errs = append(errs, field.Required(at, "one of fieldRef and resourceFieldRef is required"))
		}
	}
	return errs
}

func hasContainer(spec *v1.PodSpec, name string) bool {
	for _, list := range [][]v1.Container{spec.Containers, spec.InitContainers} {
		for _, c := range list {
			if c.Name == name {
				return true
			}
		}
	}
	return false
}

func validateProjected(s *v1.ProjectedVolumeSource, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	errs := validateMode(s.DefaultMode, path.Child("defaultMode"))
	files := sets.New[string]()
	unique := func(file string, at *field.Path) {
		if file != "" && files.Has(file) {
			errs = append(errs, field.Invalid(at, file, "conflicting duplicate paths"))
		}
		files.Insert(file)
	}
	for i, source := range s.Sources {
		at, kinds := path.Child("sources").Index(i), 0
		keyed := func(kind, name string, items []v1.KeyToPath) {
			kinds++
			errs = append(errs, validSubdomain(name, at.Child(kind, "name"))...)
			errs = append(errs, validateItems(items, nil, at.Child(kind))...)
			for j, item := range items {
				unique(item.Path, at.Child(kind, "items").Index(j).Child("path"))
			}
		}
		if c := source.ConfigMap; c != nil {
			keyed("configMap", c.Name, c.Items)
		}
		if c := source.Secret; c != nil {
			keyed("secret", c.Name, c.Items)
		}
		if d := source.DownwardAPI; d != nil {
			kinds++
			errs = append(errs, validateDownward(d.Items, spec, at.Child("downwardAPI"))...)
			for j, item := range d.Items {
				unique(item.Path, at.Child("downwardAPI", "items").Index(j).Child("path"))
			}
		}
		needsServer := func(set bool, kind string) {
			if set {
				kinds++
				errs = append(errs, field.Forbidden(at.Child(kind), "needs an API server, which a node without a cluster has not"))
			}
		}
		needsServer(source.ServiceAccountToken != nil, "serviceAccountToken")
		needsServer(source.ClusterTrustBundle != nil, "clusterTrustBundle")
		needsServer(source.PodCertificate != nil, "podCertificate")
		switch {
		case kinds == 0:
			errs = append(errs, field.Required(at, "must specify a source"))
		case kinds > 1:
			errs = append(errs, field.Forbidden(at, "may not specify more than 1 volume type per source"))
		}
	}
	return errs
}

func validateMounts(c *v1.Container, volumes map[string]*v1.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i, m := range c.VolumeMounts {
		at := path.Index(i)
		if m.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else if volumes[m.Name] == nil {
			errs = append(errs, field.NotFound(at.Child("name"), m.Name))
		}
		errs = append(errs, validateMountPath(m.MountPath, seen, at.Child("mountPath"))...)
		if m.SubPath != "" {
			errs = append(errs, relativePath(m.SubPath, at.Child("subPath"))...)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				errs = append(errs, field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
			}
			errs = append(errs, relativePath(m.SubPathExpr, at.Child("subPathExpr"))...)
		}
		errs = append(errs, validatePropagation(m, c, at)...)
	}
	return errs
}

// validateMountPath is stricter than an API server, which leaves a path that
// is relative or holds ".." to the runtime.
func validateMountPath(p string, seen sets.Set[string], at *field.Path) field.ErrorList {
	if p == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if !path.IsAbs(p) {
		return field.ErrorList{field.Invalid(at, p, "must be an absolute path")}
	}
	errs := noBacksteps(p, at)
	if seen.Has(path.Clean(p)) {
		errs = append(errs, field.Invalid(at, p, "must be unique"))
	}
	seen.Insert(path.Clean(p))
	return errs
}

func validatePropagation(m v1.VolumeMount, c *v1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p := m.MountPropagation; p != nil {
		at := path.Child("mountPropagation")
		errs = append(errs, oneOf(*p, at, v1.MountPropagationBidirectional, v1.MountPropagationHostToContainer, v1.MountPropagationNone)...)
		privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
		if *p == v1.MountPropagationBidirectional && !privileged {
			errs = append(errs, field.Forbidden(at, "Bidirectional mount propagation is available only to privileged containers"))
		}
	}
	if r := m.RecursiveReadOnly; r != nil {
		at := path.Child("recursiveReadOnly")
		errs = append(errs, oneOf(*r, at, v1.RecursiveReadOnlyDisabled, v1.RecursiveReadOnlyEnabled, v1.RecursiveReadOnlyIfPossible)...)
		if *r != v1.RecursiveReadOnlyDisabled {
			if !m.ReadOnly {
				errs = append(errs, field.Forbidden(at, "may only be specified when readOnly is true"))
			}
			if p := m.MountPropagation; p != nil && *p != v1.MountPropagationNone {
				errs = append(errs, field.Forbidden(at, fmt.Sprintf("may not be specified when mountPropagation is %s", *p)))
			}
		}
	}
	return errs
}
