package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Runtime is the OCI runtime of one runtime handler.
type Runtime struct {
	// Path is the program, absolute.
	Path string `json:"path"`
	// Root is the directory of its state. Default: RunDir/runtime-NAME.
	Root string `json:"root,omitempty"`
	// Args are global flags before the command, such as --debug.
	Args []string `json:"args,omitempty"`
	// Timeout bounds one command of it. Default: 2m.
	Timeout metav1.Duration `json:"timeout,omitzero"`
	// PrivilegedWithoutHostDevices keeps the node's devices from privileged
	// containers, as runtimes want it that bring a kernel of their own.
	PrivilegedWithoutHostDevices bool `json:"privilegedWithoutHostDevices,omitempty"`
}

// runc is the handler that needs no entry in runtimes.
const runc = "runc"

// handlerName is what a RuntimeClass may have as its handler.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// validateRuntimes reports mistakes by key.
func (c *Config) validateRuntimes(reject func(key, format string, args ...any)) {
	roots := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Runtimes)) {
		r := c.Runtimes[name]
		key := func(field string) string { return fmt.Sprintf("runtimes.%s.%s", name, field) }
		if !handlerName.MatchString(name) {
			reject("runtimes", "%q must be a name as a RuntimeClass has it: lower case letters, digits and -, at most 63", name)
		}
		if !filepath.IsAbs(r.Path) {
			reject(key("path"), "%q must be an absolute path", r.Path)
		}
		if r.Root != "" && !filepath.IsAbs(r.Root) {
			reject(key("root"), "%q must be an absolute path", r.Root)
		}
		if other, taken := roots[r.Root]; taken && r.Root != "" {
			reject(key("root"), "%s is also that of %s: a runtime takes what is there for its own", r.Root, other)
		}
		roots[r.Root] = name
		if t := r.Timeout.Duration; t != 0 && t < time.Second {
			reject(key("timeout"), "%s must be at least 1s", t)
		}
	}
	if _, ok := c.Runtimes[c.DefaultRuntime]; !ok && c.DefaultRuntime != runc {
		reject("defaultRuntime", "%q must be runc or one of runtimes", c.DefaultRuntime)
	}
}
