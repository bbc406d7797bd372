// Package image owns images: pulling, unpacking, listing, removing, and the
// read-only layer chains that container root file systems stand on. It is
// built from containerd's content store, metadata database and overlay
// snapshotter, used as libraries.
package image

import (
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image of this node. Several references can name it.
type Image struct {
	ID          string   // digest of its configuration: sha256:...
	RepoTags    []string // familiar or full names with a tag, sorted
	RepoDigests []string // name@digest, sorted
	Size        int64    // bytes of its unpacked layers and content
	User        string   // as in the configuration: uid, uid:gid, name, name:group or empty
	Pinned      bool
	Config      ocispec.ImageConfig
	Layers      []string // lower directories of the unpacked chain, topmost first, ready for overlay's lowerdir
	ChainID     string
}

// Auth are the credentials of one pull; the zero value means none.
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

// To be implemented:
//
//	type Config struct { Root string; Platform string; CertsDirs []string; MaxParallelPulls, MaxParallelLayers int; MaxLayerBytes, MaxUnpackedBytes int64; PinnedImages []string; ProgressTimeout time.Duration }
//	func Open(ctx, Config) (*Store, error)
//	(*Store) Pull(ctx, ref string, auth Auth, progress func(Progress)) (Image, error)   // concurrent pulls of one ref share one; progress may be nil
//	(*Store) Import(ctx, io.Reader) ([]Image, error)                                     // docker-archive or OCI layout tar
//	(*Store) Get(refOrID string) (Image, bool)                                            // tag, digest, ID, ID prefix; memory only, no I/O
//	(*Store) List() []Image
//	(*Store) Remove(ctx, refOrID string) error                                            // idempotent; chains in use by containers stay until Release
//	(*Store) Retain(chainID, containerID string) / Release(ctx, containerID)              // who stands on a chain; rebuilt by the CRI server after a restart
//	(*Store) Usage(ctx) (Usage, error)
//	(*Store) Run(ctx) error                                                               // garbage collection
//	(*Store) Close() error
