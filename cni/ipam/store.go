package ipam

import "context"

// Store keeps the small named records of one network. A name may hold one
// slash, for a record in a directory.
type Store interface {
	// Lock waits until no other process or goroutine holds the lock of the
	// network, at most until ctx ends. The lock goes with its holder.
	Lock(ctx context.Context) (unlock func(), err error)
	// Read returns a record; the error wraps fs.ErrNotExist when there is none.
	Read(name string) ([]byte, error)
	// Write replaces a record: after a crash it is there in full or as before.
	Write(name string, data []byte) error
	// Remove deletes a record. An absent one is no error.
	Remove(name string) error
	// List returns the names of all records in a directory ("" is the top),
	// and deletes what interrupted writes have left there.
	List(dir string) ([]string, error)
}
