package bootstrap

import (
	"io/fs"
	"syscall"
)

// inode is a file's, which changes when another is renamed over it.
func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}
