package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

const (
	// featuresTimeout bounds the question, which a status waits for.
	featuresTimeout = 5 * time.Second
	// featuresRetry is how long a failure is believed.
	featuresRetry = time.Minute
)

// Features is what a runtime says it can do, as far as the CRI wants to know.
// The kernel has to be able to as well.
type Features struct {
	RecursiveReadOnly bool // mount option rro
	IDMappedMounts    bool
	UserNamespaces    bool
}

// identity tells a program from one that was installed in its place.
type identity struct {
	dev, ino uint64
	size     int64
	changed  unix.Timespec
}

func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, fmt.Errorf("look at %s: %w", path, err)
	}
	return identity{dev: st.Dev, ino: st.Ino, size: st.Size, changed: st.Mtim}, nil
}

// Features asks the program for its features (OCI runtime specification,
// features.md), once for as long as it is the same program. An error says why
// they are not known, and is kept for a minute: the command is younger than
// many installed runtimes.
func (r *Runtime) Features(ctx context.Context) (Features, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, err := identify(r.Path)
	if err != nil {
		return Features{}, err
	}
	if now == r.asked && (r.failed == nil || time.Since(r.at) < featuresRetry) {
		return r.known, r.failed
	}
	known, err := r.askFeatures(ctx)
	if ctx.Err() != nil {
		return Features{}, err // the caller's haste says nothing of the runtime
	}
	r.asked, r.at, r.known, r.failed = now, time.Now(), known, err
	return known, err
}

func (r *Runtime) askFeatures(ctx context.Context) (Features, error) {
	ctx, cancel := context.WithTimeout(ctx, featuresTimeout)
	defer cancel()
	out, err := r.command(ctx, nil, "features")
	if err != nil {
		return Features{}, err
	}
	return parseFeatures(out)
}

func parseFeatures(text []byte) (Features, error) {
	var f features.Features
	if err := json.Unmarshal(text, &f); err != nil {
		return Features{}, fmt.Errorf("parse the runtime's features: %w", err)
	}
	known := Features{RecursiveReadOnly: slices.Contains(f.MountOptions, "rro")}
	if f.Linux != nil {
		known.UserNamespaces = slices.Contains(f.Linux.Namespaces, "user")
		if m := f.Linux.MountExtensions; m != nil && m.IDMap != nil && m.IDMap.Enabled != nil {
			known.IDMappedMounts = *m.IDMap.Enabled
		}
	}
	return known, nil
}

// Installed is an error that names the program when it is not there.
func (r *Runtime) Installed() error {
	if _, err := os.Stat(r.Path); err != nil {
		return fmt.Errorf("runtime handler %s: %w", r.Name, err)
	}
	return nil
}
