package image

import (
	"fmt"
	"io"
	"sync/atomic"
)

// limits bound what one layer and one image may unpack to, so that an image
// cannot fill the disk or use up its inodes.
type limits struct {
	layerBytes   int64
	imageBytes   int64
	layerEntries int64
}

// maxNames bounds the names and link targets of one layer, which are held in
// memory while it is unpacked: bytes.
const maxNames = 256 << 20

// allowance is what the layers of one image, which are unpacked at the same
// time, may still use together.
type allowance struct{ left atomic.Int64 }

func newAllowance(bytes int64) *allowance {
	a := &allowance{}
	a.left.Store(bytes)
	return a
}

// meter counts what one layer uses: the bytes it unpacks to, or those that its
// files declare where that is more. It belongs to one goroutine.
type meter struct {
	limits
	image    *allowance
	read     int64
	declared int64
	entries  int64
	names    int64 // bytes
	charged  int64 // to the image
}

func (m *meter) entry(name, link string) error {
	if m.entries++; m.entries > m.layerEntries {
		return fmt.Errorf("layer has more than the %d entries one layer may have", m.layerEntries)
	}
	if m.names += int64(len(name) + len(link)); m.names > maxNames {
		return fmt.Errorf("names in the layer take more than the %d bytes they may", maxNames)
	}
	return nil
}

// declare adds the size that a file says it has, up to 2^63-1.
func (m *meter) declare(size int64) error {
	if size > m.layerBytes-m.declared {
		return m.overLayer()
	}
	m.declared += size
	return m.charge()
}

func (m *meter) carry(n int) error {
	if m.read += int64(n); m.read > m.layerBytes {
		return m.overLayer()
	}
	return m.charge()
}

func (m *meter) charge() error {
	more := max(m.read, m.declared) - m.charged
	if more <= 0 {
		return nil
	}
	m.charged += more
	if m.image.left.Add(-more) < 0 {
		return fmt.Errorf("image unpacks to more than the %d bytes one image may have", m.imageBytes)
	}
	return nil
}

func (m *meter) overLayer() error {
	return fmt.Errorf("layer unpacks to more than the %d bytes one layer may have", m.layerBytes)
}

// meteredReader ends with an error when the meter says so.
type meteredReader struct {
	r     io.Reader
	meter *meter
}

func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if over := r.meter.carry(n); over != nil {
		return 0, over
	}
	return n, err
}
