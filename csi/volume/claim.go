package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// claim is a PersistentVolumeClaim bound to a directory of this host.
type claim struct {
	source *v1.PersistentVolumeClaimVolumeSource
}

func (claim) plugin() string { return "kubernetes.io~local-volume" }

func (c claim) setUp(ctx context.Context, r request) (Mounted, error) {
	mounted, err := c.bind(ctx, r)
	if err != nil {
		if errors.Is(err, ErrNotFound) {
			return Mounted{}, err // it names the claim
		}
		return Mounted{}, fmt.Errorf("persistentvolumeclaim %q: %w", c.source.ClaimName, err)
	}
	return mounted, nil
}

func (c claim) bind(ctx context.Context, r request) (Mounted, error) {
	m := r.manager
	path, readOnly, err := m.objects.Claim(ctx, r.pod.Pod, c.source.ClaimName)
	if err != nil {
		return Mounted{}, err
	}
	readOnly = readOnly || c.source.ReadOnly
	mounted := Mounted{HostPath: r.dir, ReadOnly: readOnly}
	podDir := m.podDir(string(r.pod.UID))
	if there, err := isMount(r.dir); err != nil {
		return Mounted{}, err
	} else if there {
		return mounted, record(podDir, r.dir, path)
	}
	r.at.set("open %s, the directory of claim %s/%s", path, r.pod.Namespace, c.source.ClaimName)
	source, err := m.openClaim(path)
	if err != nil {
		return Mounted{}, err
	}
	defer source.Close()
	// The group is set before the mount appears, so that finding the mount
	// means that it is done: the files in it are the pod's from then on.
	if group := r.pod.fsGroup(); group != nil && !readOnly {
		if err := giveTo(ctx, source, path, *group, r.pod.groupChangePolicy(), r.at); err != nil {
			return Mounted{}, err
		}
	}
	if err := os.MkdirAll(r.dir, dirMode); err != nil {
		return Mounted{}, err
	}
	return mounted, m.mounts.make(podDir, r.dir, path, r.at, func() error {
		return bind(int(source.Fd()), r.dir, readOnly)
	})
}

// openClaim opens the directory of a claim. One below Config.ClaimsDir is made
// here, open to all users as a provisioner would; any other is the
// administrator's, and a missing one may be a disk that is not mounted.
func (m *Manager) openClaim(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		if m.claimsDir == "" || !strings.HasPrefix(path, filepath.Clean(m.claimsDir)+"/") {
			return nil, fmt.Errorf("%s, which it is bound to, does not exist: make the directory or mount its disk", path)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		// Another pod with this claim may have made it meanwhile.
		makeErr := makeDir(path, nil)
		if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil && makeErr != nil {
			return nil, makeErr
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s, which it is bound to: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
