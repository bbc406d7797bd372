package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/berth-io/berth/cri/spec"
)

// featuresTimeout bounds how long an OCI runtime may take to tell its features.
const featuresTimeout = 10 * time.Second

// RuntimeFeatures asks an OCI runtime what it can do. One that has no command
// for it, as runc before 1.1 and gVisor's, is taken to be able to do nothing
// of it. What the host cannot do is the caller's to take off.
func RuntimeFeatures(ctx context.Context, binary string) spec.Features {
	ctx, cancel := context.WithTimeout(ctx, featuresTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "features")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var f features.Features
	if err == nil {
		err = json.Unmarshal(out, &f)
	}
	if err != nil {
		return spec.Features{NoUserNamespaces: fmt.Errorf("ask %s for its features: %w", binary, err)}
	}
	return ociFeatures(f, binary)
}

func ociFeatures(f features.Features, binary string) spec.Features {
	out := spec.Features{RecursiveReadOnly: slices.Contains(f.MountOptions, "rro")}
	switch {
	case f.Linux == nil || !slices.Contains(f.Linux.Namespaces, "user"):
		out.NoUserNamespaces = fmt.Errorf("%s does not know user namespaces", binary)
	case !idMaps(f.Linux.MountExtensions):
		out.NoUserNamespaces = errors.New(binary + " cannot map the IDs of mounts (runc 1.2 can)")
	}
	return out
}

func idMaps(m *features.MountExtensions) bool {
	return m != nil && m.IDMap != nil && m.IDMap.Enabled != nil && *m.IDMap.Enabled
}
