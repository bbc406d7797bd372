//go:build !amd64

package host

// noX32: elsewhere no profile speaks of x32.
func noX32() bool { return false }
