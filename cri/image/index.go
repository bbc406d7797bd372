package image

import (
	"slices"
	"strings"
	"sync"
)

// index answers which images there are from memory. It mirrors the image
// records of the database; the store changes both under one lock.
type index struct {
	pinned pins // record names and IDs that pin their image

	mu     sync.RWMutex
	refs   map[string]string // record name to image ID
	images map[string]Image  // by ID
}

func newIndex(pinned pins) *index {
	return &index{pinned: pinned, refs: map[string]string{}, images: map[string]Image{}}
}

// put makes names point to img, taking them from whatever image had them.
func (x *index) put(names []string, img Image) {
	x.mu.Lock()
	defer x.mu.Unlock()
	touched := map[string]bool{img.ID: true}
	x.images[img.ID] = img
	for _, name := range names {
		if old, ok := x.refs[name]; ok {
			touched[old] = true
		}
		x.refs[name] = img.ID
	}
	x.regroup(touched)
}

// drop forgets names.
func (x *index) drop(names []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	touched := map[string]bool{}
	for _, name := range names {
		if id, ok := x.refs[name]; ok {
			touched[id] = true
			delete(x.refs, name)
		}
	}
	x.regroup(touched)
}

// regroup computes the names of the touched images anew; an image that no
// record names any more is gone.
func (x *index) regroup(touched map[string]bool) {
	tags, digests, named := map[string][]string{}, map[string][]string{}, map[string]bool{}
	pinned := map[string]bool{}
	for name, id := range x.refs {
		if !touched[id] {
			continue
		}
		named[id] = true
		pinned[id] = pinned[id] || x.pinned.match(name) || x.pinned.match(id)
		switch kindOf(name) {
		case recordTag:
			tags[id] = append(tags[id], name)
		case recordDigest:
			digests[id] = append(digests[id], name)
		}
	}
	for id := range touched {
		if !named[id] {
			delete(x.images, id)
			continue
		}
		img := x.images[id]
		slices.Sort(tags[id])
		slices.Sort(digests[id])
		img.RepoTags, img.RepoDigests, img.Pinned = tags[id], digests[id], pinned[id]
		x.images[id] = img
	}
}

// get finds an image by ID, by reference, or by a prefix of its ID that only
// it has, in this order.
func (x *index) get(refOrID string) (Image, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if img, ok := x.images[refOrID]; ok {
		return img, true
	}
	if named, err := parseReference(refOrID); err == nil {
		if id, ok := x.refs[named.String()]; ok {
			return x.images[id], true
		}
	}
	return x.byPrefix(refOrID)
}

func (x *index) byPrefix(prefix string) (Image, bool) {
	prefix = strings.TrimPrefix(prefix, "sha256:")
	if prefix == "" {
		return Image{}, false
	}
	var found Image
	n := 0
	for id, img := range x.images {
		if strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), prefix) {
			found = img
			n++
		}
	}
	return found, n == 1
}

// has reports whether there is a record of that name.
func (x *index) has(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.refs[name]
	return ok
}

// names lists the records of an image.
func (x *index) names(id string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var names []string
	for name, of := range x.refs {
		if of == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// list returns all images, sorted by ID.
func (x *index) list() []Image {
	x.mu.RLock()
	defer x.mu.RUnlock()
	images := make([]Image, 0, len(x.images))
	for _, img := range x.images {
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return images
}

// uses reports whether an image stands on the chain.
func (x *index) uses(chainID string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, img := range x.images {
		if img.ChainID == chainID {
			return true
		}
	}
	return false
}
