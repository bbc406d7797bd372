// Package image owns images: pulling, unpacking, listing, removing, and the
// read-only layer chains that container root file systems stand on. It is
// built from containerd's content store, metadata database and overlay
// snapshotter, used as libraries.
//
// Under Config.Root lie content/ (blobs by digest), snapshots/N/fs (one
// unpacked layer each), and the two databases metadata.db (references, blobs,
// leases) and snapshots.db (the snapshotter's own), and boot, the ID of the
// boot in which they were last opened. One process owns them at a time.
//
// What keeps data alive is a chain of references that containerd's garbage
// collector follows: an image record names a manifest, labels lead from there
// to the configuration, the layers and the unpacked chain. Data of a pull in
// flight is held by a lease; a chain that containers still stand on after its
// image was removed is held by another. So a crash at any line leaves either
// what is referenced, or what the next Open collects.
//
// The writable layers of containers are not kept here: they belong to the CRI
// server, which mounts Image.Layers below them.
package image

import (
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image of this node. Several references can name it. Its slices
// and maps are shared with the store: read them, do not change them.
type Image struct {
	ID          string   // digest of its configuration, of an artifact its manifest: sha256:...
	RepoTags    []string // full names with a tag, sorted
	RepoDigests []string // name@digest, sorted
	Size        int64    // bytes of its manifests, configuration and packed layers, as containerd tells it; see Usage for the disk
	User        string   // as in the configuration: uid, uid:gid, name, name:group or empty
	Pinned      bool
	Artifact    bool // not an image but an OCI artifact: it can be mounted, not run
	Config      ocispec.ImageConfig
	Layers      []string // lower directories of the unpacked chain, topmost first, ready for overlay's lowerdir
	ChainID     string
}

// Description is what the documents of an image say.
type Description struct {
	Manifest ocispec.Manifest
	Config   ocispec.Image // empty for an artifact
}

// Auth are the credentials of one pull; the zero value means none. Their
// fields are those of the CRI's AuthConfig.
type Auth struct {
	Username, Password, Auth, ServerAddress, IdentityToken, RegistryToken string
}

// Usage of the image file system.
type Usage struct {
	Path       string
	Bytes      uint64
	Inodes     uint64
	MeasuredAt time.Time
}

// Progress is one step of a pull, for people who watch it.
type Progress struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest,omitempty"` // of the layer, or empty for the image as a whole
	Status string `json:"status"`           // resolving, waiting, downloading, unpacking, done, exists
	Offset int64  `json:"offset"`
	Total  int64  `json:"total"`
}
