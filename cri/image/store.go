package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	bolt "go.etcd.io/bbolt"
	errbolt "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/semaphore"
)

// namespace is the containerd namespace of the records, the one that
// containerd's CRI uses.
const namespace = "k8s.io"

// Config says where images are kept and what bounds their pulls. Zero values
// mean the defaults given here.
type Config struct {
	Root              string        // directory of the store; a short path leaves room for more lowerdirs in a mount
	Platform          string        // os/arch[/variant] to choose from indexes; default: this machine's
	CertsDirs         []string      // searched in order for HOST/hosts.toml; default /etc/berth/certs.d, /etc/containerd/certs.d
	MaxParallelPulls  int           // images pulled at a time; default 4
	MaxParallelLayers int           // layers of one image fetched at a time; default 3
	MaxParallelUnpack int           // layers unpacked at a time, over all pulls; default as many as processors, at most 4
	MaxLayerBytes     int64         // of one layer, packed and unpacked; default 64 GiB
	MaxUnpackedBytes  int64         // of the layers of one image together; default 128 GiB
	MaxLayerEntries   int64         // files and directories of one layer; default 4,194,304
	PinnedImages      []string      // references that the kubelet must not collect; * stands for any text
	AuthFile          string        // docker config.json for pulls that bring no credentials; empty: none
	ProgressTimeout   time.Duration // silence of a registry after which a request to it is given up; default 5 minutes, as containerd's
	Log               *slog.Logger  // default: none
}

// Store is the image store of a node.
type Store struct {
	config   Config
	log      *slog.Logger
	match    platforms.MatchComparer
	platform string // as people write it

	bolt     *bolt.DB
	db       *metadata.DB
	content  content.Store
	overlay  snapshots.Snapshotter
	records  images.Store
	leases   leases.Manager
	held     *pullLeases
	flights  flights
	blobs    keylock
	chainsMu keylock
	pulls    *semaphore.Weighted
	unpacks  *semaphore.Weighted

	// changing serialises what changes image records, so that the index and
	// the chains change in the database's order.
	changing sync.Mutex
	index    *index
	chains   *chains

	collect chan struct{} // holds a token when there is something to collect

	usageMu sync.Mutex
	usage   Usage // zero MeasuredAt: to be measured again
}

func (c Config) withDefaults() Config {
	if len(c.CertsDirs) == 0 {
		c.CertsDirs = []string{"/etc/berth/certs.d", "/etc/containerd/certs.d"}
	}
	if c.MaxParallelPulls <= 0 {
		c.MaxParallelPulls = 4
	}
	if c.MaxParallelLayers <= 0 {
		c.MaxParallelLayers = 3
	}
	if c.MaxLayerBytes <= 0 {
		c.MaxLayerBytes = 64 << 30
	}
	if c.MaxUnpackedBytes <= 0 {
		c.MaxUnpackedBytes = 128 << 30
	}
	if c.MaxParallelUnpack <= 0 {
		c.MaxParallelUnpack = min(runtime.NumCPU(), 4)
	}
	if c.MaxLayerEntries <= 0 {
		c.MaxLayerEntries = 4 << 20
	}
	if c.ProgressTimeout <= 0 {
		c.ProgressTimeout = 5 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) limits() limits {
	return limits{layerBytes: c.MaxLayerBytes, imageBytes: c.MaxUnpackedBytes, layerEntries: c.MaxLayerEntries}
}

// Open opens the store, removes what a crash left half done, and reads which
// images there are. An image of which something is missing is logged and
// dropped, so that the next pull repairs it. The caller closes the store.
func Open(ctx context.Context, config Config) (_ *Store, err error) {
	s := &Store{config: config.withDefaults(), collect: make(chan struct{}, 1)}
	s.log = s.config.Log
	s.pulls = semaphore.NewWeighted(int64(s.config.MaxParallelPulls))
	s.unpacks = semaphore.NewWeighted(int64(s.config.MaxParallelUnpack))
	s.flights.running = map[flightKey]*flight{}
	spec := platforms.DefaultSpec()
	if config.Platform != "" {
		if spec, err = platforms.Parse(config.Platform); err != nil {
			return nil, fmt.Errorf("platform %q: %w", config.Platform, err)
		}
	}
	s.match, s.platform = platforms.Only(spec), platforms.Format(platforms.Normalize(spec))
	pinned, err := newPins(config.PinnedImages)
	if err != nil {
		return nil, err
	}
	s.index, s.chains = newIndex(pinned), newChains()

	if err := s.openDatabases(ctx); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", config.Root, err)
	}
	if err := s.recover(s.context(ctx)); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store %s: %w", config.Root, err), s.Close())
	}
	return s, nil
}

func (s *Store) openDatabases(ctx context.Context) (err error) {
	root := s.config.Root
	if err := os.MkdirAll(root, 0o711); err != nil {
		return err
	}
	s.bolt, err = bolt.Open(filepath.Join(root, "metadata.db"), 0o600, &bolt.Options{Timeout: time.Second})
	if errors.Is(err, errbolt.ErrTimeout) {
		return fmt.Errorf("another process has it open")
	}
	if err != nil {
		return fmt.Errorf("metadata.db: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.bolt.Close())
		}
	}()
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return err
	}
	ms, err := storage.NewMetaStore(filepath.Join(root, "snapshots.db"))
	if err != nil {
		return err
	}
	// The snapshotter's root is the store's own, which makes the lower
	// directories ROOT/snapshots/N/fs.
	s.overlay, err = overlay.NewSnapshotter(root, overlay.WithMetaStore(ms), overlay.WithUpperdirLabel)
	if err != nil {
		return err
	}
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{snapshotterName: s.overlay})
	if err := s.db.Init(ctx); err != nil {
		return errors.Join(fmt.Errorf("metadata.db: %w", err), s.overlay.Close())
	}
	s.content = s.db.ContentStore()
	s.records = metadata.NewImageStore(s.db)
	s.leases = metadata.NewLeaseManager(s.db)
	s.held = &pullLeases{manager: s.leases, running: map[string]bool{}}
	return nil
}

func (s *Store) snapshotter() snapshots.Snapshotter { return s.db.Snapshotter(snapshotterName) }

// context carries what the containerd packages take from it.
func (s *Store) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(withLogger(ctx, s.log), namespace)
}

// Get finds an image by tag, digest, ID or unique prefix of its ID. It answers
// from memory.
func (s *Store) Get(refOrID string) (Image, bool) { return s.index.get(refOrID) }

// List returns all images, sorted by ID. It answers from memory.
func (s *Store) List() []Image { return s.index.list() }

// Describe reads the documents of an image by its ID.
func (s *Store) Describe(ctx context.Context, id string) (Description, error) {
	ctx = s.context(ctx)
	names := s.index.names(id)
	if len(names) == 0 {
		return Description{}, fmt.Errorf("image %s: %w", id, errdefs.ErrNotFound)
	}
	record, err := s.records.Get(ctx, names[0])
	if err != nil {
		return Description{}, fmt.Errorf("record %s: %w", names[0], err)
	}
	c, err := s.inspect(ctx, stored{s.content}, record.Target)
	if err != nil {
		return Description{}, err
	}
	return Description{Manifest: c.manifest, Config: c.config}, nil
}

// Close ends running pulls and closes the databases. Run must have returned.
func (s *Store) Close() error {
	s.flights.close()
	return errors.Join(s.overlay.Close(), s.db.Close())
}

// Usage is what images occupy, from the sizes that were recorded when layers
// were committed. It is measured again only after images have changed.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	s.usageMu.Lock()
	defer s.usageMu.Unlock()
	if !s.usage.MeasuredAt.IsZero() {
		return s.usage, nil
	}
	ctx = s.context(ctx)
	usage := Usage{Path: s.config.Root, MeasuredAt: time.Now()}
	sn := s.snapshotter()
	err := sn.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		u, err := sn.Usage(ctx, info.Name)
		if err != nil {
			return err
		}
		usage.Bytes += uint64(u.Size)
		usage.Inodes += uint64(u.Inodes)
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure snapshots: %w", err)
	}
	err = s.content.Walk(ctx, func(info content.Info) error {
		usage.Bytes += uint64(info.Size)
		usage.Inodes++
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure content: %w", err)
	}
	s.usage = usage
	return usage, nil
}

// changed makes the next Usage measure again.
func (s *Store) changed() {
	s.usageMu.Lock()
	s.usage.MeasuredAt = time.Time{}
	s.usageMu.Unlock()
}
