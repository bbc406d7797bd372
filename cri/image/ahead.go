package image

import (
	"io"
	"sync"
)

const (
	aheadBlock  = 128 << 10 // bytes
	aheadBlocks = 4
)

// aheadReader reads from another reader in a goroutine of its own, a few
// blocks ahead: decompressing a layer and writing its files then take two
// processors instead of one.
type aheadReader struct {
	full, empty chan []byte
	stop        chan struct{}
	wg          sync.WaitGroup

	block, rest []byte // the block in use, and what is left of it
	err         error  // of the reader below, set before full is closed
}

func readAhead(r io.Reader) *aheadReader {
	a := &aheadReader{
		full: make(chan []byte, aheadBlocks), empty: make(chan []byte, aheadBlocks),
		stop: make(chan struct{}),
	}
	for range aheadBlocks {
		a.empty <- make([]byte, aheadBlock)
	}
	a.wg.Go(func() {
		defer close(a.full)
		a.err = a.fill(r)
	})
	return a
}

// fill sends blocks until the reader ends or nobody reads any more. Its error
// is the one that Read returns after the last block.
func (a *aheadReader) fill(r io.Reader) error {
	for {
		var block []byte
		select {
		case block = <-a.empty:
		case <-a.stop:
			return io.ErrClosedPipe
		}
		n := 0
		var err error
		for n < len(block) && err == nil {
			var m int
			m, err = r.Read(block[n:])
			n += m
		}
		if n > 0 {
			a.full <- block[:n] // there is room for every block
		}
		if err != nil {
			return err
		}
	}
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.block != nil {
			a.empty <- a.block[:aheadBlock]
			a.block = nil
		}
		block, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.block, a.rest = block, block
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close waits until nothing is read from the reader below any more.
func (a *aheadReader) Close() {
	close(a.stop)
	a.wg.Wait()
}
