package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// hostPath is a path of the host as it is.
type hostPath struct{ source *v1.HostPathVolumeSource }

func (hostPath) plugin() string { return "" }

func (h hostPath) setUp(_ context.Context, r request) (Mounted, error) {
	wanted := v1.HostPathUnset
	if h.source.Type != nil {
		wanted = *h.source.Type
	}
	r.at.set("look at %s of volume %q", h.source.Path, r.spec.Name)
	if err := checkHostPath(h.source.Path, wanted); err != nil {
		return Mounted{}, fmt.Errorf("hostPath %s: %w", h.source.Path, err)
	}
	return Mounted{HostPath: h.source.Path}, nil
}

// checkHostPath sees that path is what the manifest says, and makes it where
// the type asks for that, with the kubelet's modes. Symlinks are followed.
func checkHostPath(path string, wanted v1.HostPathType) error {
	if wanted == v1.HostPathUnset {
		return nil
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		switch wanted {
		case v1.HostPathDirectoryOrCreate:
			return os.MkdirAll(path, 0o755)
		case v1.HostPathFileOrCreate:
			return makeFile(path)
		}
		return fmt.Errorf("does not exist; with type %s it must", wanted)
	}
	if err != nil {
		return err
	}
	if is := typeOf(st.Mode()); is != wanted && is+"OrCreate" != wanted {
		return fmt.Errorf("is a %s, not a %s", is, strings.TrimSuffix(string(wanted), "OrCreate"))
	}
	return nil
}

// typeOf is the type of hostPath that a file of this mode satisfies.
func typeOf(mode fs.FileMode) v1.HostPathType {
	switch mode.Type() {
	case fs.ModeDir:
		return v1.HostPathDirectory
	case 0:
		return v1.HostPathFile
	case fs.ModeSocket:
		return v1.HostPathSocket
	case fs.ModeDevice | fs.ModeCharDevice:
		return v1.HostPathCharDev
	case fs.ModeDevice:
		return v1.HostPathBlockDev
	case fs.ModeNamedPipe:
		return "FIFO"
	}
	return v1.HostPathType(mode.Type().String()) // nothing Linux has
}

func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
