package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	volumesDir  = "volumes"
	subPathsDir = "volume-subpaths"
	dirMode     = 0o750 // of the directories above volumes, as the kubelet's
)

// Config is what a Manager is made from.
type Config struct {
	KubeletDir string // /var/lib/kubelet
	// ClaimsDir is where the directories of claims are made when they are
	// missing; empty: every claim's directory must be there.
	ClaimsDir string
}

// Manager sets up and tears down the volumes of pods. Its methods may be called
// concurrently; calls for one pod are done one after the other. When a call's
// context ends first, the call returns an error that names the step it is stuck
// in, and later calls for that pod wait for the step: nobody else is blocked by
// a file server that does not answer.
type Manager struct {
	podsDir   string
	claimsDir string
	objects   Objects
	mounts    *mounts
	pods      *podLocks
}

// New looks whether the kernel can do what safe volumes need. It starts and
// changes nothing.
func New(config Config, objects Objects) (*Manager, error) {
	if !filepath.IsAbs(config.KubeletDir) {
		return nil, fmt.Errorf("kubelet directory %q: must be an absolute path", config.KubeletDir)
	}
	if fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}); err != nil {
		return nil, fmt.Errorf("openat2: %w (volumes need Linux 5.8 or newer)", err)
	} else if err := unix.Close(fd); err != nil {
		return nil, fmt.Errorf("close /: %w", err)
	}
	if known, err := isMount("/"); err != nil {
		return nil, err
	} else if !known {
		return nil, errors.New("statx does not tell mount points (volumes need Linux 5.8 or newer)")
	}
	return &Manager{
		podsDir:   filepath.Join(config.KubeletDir, "pods"),
		claimsDir: config.ClaimsDir,
		objects:   objects,
		mounts:    &mounts{},
		pods:      newPodLocks(),
	}, nil
}

func (m *Manager) podDir(uid string) string { return filepath.Join(m.podsDir, uid) }

// SetUp makes the pod's volumes, by name. It is level driven: calling it again
// makes what is missing and refreshes the content of configMap, secret,
// downwardAPI and projected volumes, atomically. Each volume that could not be
// set up is named in the error (see Errors); the others are set up nevertheless, and calling
// again is how to retry.
func (m *Manager) SetUp(ctx context.Context, pod Pod) (map[string]Mounted, error) {
	return serialized(ctx, m, string(pod.UID), func(at *step) (map[string]Mounted, error) {
		ready := make(map[string]Mounted, len(pod.Spec.Volumes))
		var errs []error
		for i := range pod.Spec.Volumes {
			spec := &pod.Spec.Volumes[i]
			if err := ctx.Err(); err != nil {
				return nil, errors.Join(append(errs, context.Cause(ctx))...)
			}
			mounted, err := m.setUpOne(ctx, request{manager: m, at: at, pod: &pod, spec: spec})
			if err != nil {
				errs = append(errs, &Error{Volume: spec.Name, Err: err})
				continue
			}
			ready[spec.Name] = mounted
		}
		if len(errs) > 0 {
			return nil, errors.Join(errs...)
		}
		return ready, nil
	})
}

func (m *Manager) setUpOne(ctx context.Context, r request) (Mounted, error) {
	if err := checkName(r.spec.Name); err != nil {
		return Mounted{}, err
	}
	k, err := kindOf(r.spec)
	if err != nil {
		return Mounted{}, err
	}
	if plugin := k.plugin(); plugin != "" {
		r.dir = filepath.Join(m.podDir(string(r.pod.UID)), volumesDir, plugin, r.spec.Name)
	}
	r.at.set("set up volume %q", r.spec.Name)
	mounted, err := k.setUp(ctx, r)
	mounted.Name = r.spec.Name
	return mounted, err
}

// Orphans lists the UIDs of pods that have volumes here, from the disk alone,
// for clean-up after a crash.
func (m *Manager) Orphans() ([]string, error) {
	entries, err := os.ReadDir(m.podsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list pods with volumes: %w", err)
	}
	var uids []string
	for _, entry := range entries {
		for _, dir := range []string{volumesDir, subPathsDir, journalDir} {
			_, err := os.Lstat(filepath.Join(m.podsDir, entry.Name(), dir))
			if err == nil {
				uids = append(uids, entry.Name())
				break
			}
			if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return nil, fmt.Errorf("list pods with volumes: %w", err)
			}
		}
	}
	return uids, nil
}

// checkName refuses names that would lead elsewhere: they become elements of
// paths. The API allows DNS labels only.
func checkName(name string) error {
	if name == "" || strings.HasPrefix(name, "..") || name == "." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q cannot be a directory's name", name)
	}
	return nil
}
