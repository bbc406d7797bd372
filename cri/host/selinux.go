package host

import (
	"errors"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
)

// HasSELinux tells whether the kernel has SELinux and a policy for it.
func HasSELinux() bool { return selinux.GetEnabled() }

// SELinux is the policy of this host.
type SELinux struct{}

// Contexts are those of the policy's file lxc_contexts, in which it tells
// container runtimes what to use.
func (SELinux) Contexts() (process, file string) {
	process, file = selinux.ContainerLabels() // with a pair of categories that the library gives out
	selinux.ReleaseLabel(process)
	return plain(process), plain(file)
}

// plain is a context with its sensitivity, but without categories.
func plain(context string) string {
	c, err := selinux.NewContext(context)
	if err != nil {
		return context // the caller says what is wrong with it
	}
	if c["level"] != "" {
		c["level"] = "s0" // which is what the library makes its pairs for
	}
	return c.Get()
}

// Check returns an error where the policy does not know a context.
func (SELinux) Check(context string) error { return selinux.SecurityCheckContext(context) }

// Relabel gives a file, or a directory with all that is in it, a context. It
// refuses the host's own directories. What is on a file system without labels
// is left alone.
func (SELinux) Relabel(path, context string) error {
	err := label.Relabel(path, context, false)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
