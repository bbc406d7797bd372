package manifest

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// File is what one accepted file asks for.
type File struct {
	Name string
	Set  Set
}

// Merge puts files together. Names must be unique over all of them: of two
// files that define the same object the one whose name sorts later is left
// out as a whole, and the Rejection names both. Sets and their objects are
// shared with the result, not copied.
func Merge(files []File) (Set, []Rejection) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	out := newSet()
	var rejections []Rejection
	owner := map[string]string{} // "Kind namespace/name" -> file
	for _, f := range files {
		conflicts := false
		for _, id := range objectsOf(f.Set) {
			if other, ok := owner[id]; ok {
				conflicts = true
				rejections = append(rejections, Rejection{File: f.Name, Field: "metadata.name",
					Reason: fmt.Sprintf("%s is already defined in %s", id, other)})
			}
		}
		if conflicts {
			continue
		}
		for _, id := range objectsOf(f.Set) {
			owner[id] = f.Name
		}
		out.Pods = append(out.Pods, f.Set.Pods...)
		maps.Copy(out.ConfigMaps, f.Set.ConfigMaps)
		maps.Copy(out.Secrets, f.Set.Secrets)
		maps.Copy(out.Claims, f.Set.Claims)
		maps.Copy(out.Services, f.Set.Services)
	}
	slices.SortFunc(out.Pods, comparePods)
	return out, rejections
}

// objectsOf names what a set defines, in a fixed order.
func objectsOf(s Set) []string {
	var ids []string
	for _, pod := range s.Pods {
		ids = append(ids, "Pod "+Key{pod.Namespace, pod.Name}.String())
	}
	ids = appendKeys(ids, "ConfigMap", s.ConfigMaps)
	ids = appendKeys(ids, "Secret", s.Secrets)
	ids = appendKeys(ids, "PersistentVolumeClaim", s.Claims)
	ids = appendKeys[*v1.Service](ids, "Service", s.Services)
	slices.Sort(ids)
	return ids
}

func appendKeys[V any](ids []string, kind string, m map[Key]V) []string {
	for key := range m {
		ids = append(ids, kind+" "+key.String())
	}
	return ids
}
