package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

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
		return Mounted{}, err
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
		return notOfType(path, wanted, "it does not exist")
	}
	if err != nil {
		return err
	}
	if is := typeOf(st.Mode()); is != wanted && is+"OrCreate" != wanted {
		return notOfType(path, wanted, "it is a "+inWords(is))
	}
	return nil
}

// notOfType begins with the kubelet's text (pkg/volume/hostpath, checkType).
func notOfType(path string, wanted v1.HostPathType, why string) error {
	return fmt.Errorf("hostPath type check failed: %s is not a %s: %s", path, inWords(wanted), why)
}

func inWords(t v1.HostPathType) string {
	switch t {
	case v1.HostPathDirectory, v1.HostPathDirectoryOrCreate:
		return "directory"
	case v1.HostPathFile, v1.HostPathFileOrCreate:
		return "file"
	case v1.HostPathSocket:
		return "socket file"
	case v1.HostPathCharDev:
		return "character device"
	case v1.HostPathBlockDev:
		return "block device"
	}
	return string(t)
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
