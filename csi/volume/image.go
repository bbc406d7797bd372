package volume

import "context"

// imageVolume is an image or an artifact. The runtime mounts it, into each
// container for itself; there is nothing on the host.
type imageVolume struct{}

func (imageVolume) plugin() string { return "" }

func (imageVolume) setUp(context.Context, request) (Mounted, error) {
	return Mounted{ReadOnly: true}, nil
}
