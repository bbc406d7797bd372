package manifest

import (
	"maps"
	"slices"
)

// Objects names everything a set defines, as "Kind namespace/name", sorted.
// No two files may define the same.
func (s Set) Objects() []string {
	ids := make([]string, 0, len(s.Pods)+len(s.ConfigMaps)+len(s.Secrets)+len(s.Claims)+len(s.Services))
	for _, pod := range s.Pods {
		ids = append(ids, "Pod "+Key{pod.Namespace, pod.Name}.String())
	}
	ids = appendKeys(ids, "ConfigMap", s.ConfigMaps)
	ids = appendKeys(ids, "Secret", s.Secrets)
	ids = appendKeys(ids, "PersistentVolumeClaim", s.Claims)
	ids = appendKeys(ids, "Service", s.Services)
	slices.Sort(ids)
	return ids
}

func appendKeys[V any](ids []string, kind string, m map[Key]V) []string {
	for key := range m {
		ids = append(ids, kind+" "+key.String())
	}
	return ids
}

// Merge puts the sets of several files together; they must not define the
// same objects. The objects are shared with the result, not copied.
func Merge(sets []Set) Set {
	out := newSet()
	for _, s := range sets {
		out.Pods = append(out.Pods, s.Pods...)
		maps.Copy(out.ConfigMaps, s.ConfigMaps)
		maps.Copy(out.Secrets, s.Secrets)
		maps.Copy(out.Claims, s.Claims)
		maps.Copy(out.Services, s.Services)
	}
	slices.SortFunc(out.Pods, comparePods)
	return out
}
