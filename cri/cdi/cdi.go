// Package cdi gives containers the devices of the Container Device Interface:
// vendors describe in files what a device by name needs in a container, and
// requests name devices.
package cdi

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Names lists the devices that a request names, each once: in its field, and in
// the annotations cdi.k8s.io/... of device plugins from before there was one.
func Names(c *runtimeapi.ContainerConfig) ([]string, error) {
	var names []string
	for _, d := range c.GetCDIDevices() {
		if !parser.IsQualifiedName(d.GetName()) {
			return nil, fmt.Errorf("config.CDI_devices: %q is not a name such as vendor.com/class=device", d.GetName())
		}
		names = append(names, d.GetName())
	}
	_, annotated, err := cdi.ParseAnnotations(c.GetAnnotations())
	if err != nil {
		return nil, fmt.Errorf("config.annotations: %w", err)
	}
	slices.Sort(annotated) // they come out of a map
	var once []string
	for _, name := range append(names, annotated...) {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once, nil
}

// Inject adds what the devices need to a specification. The files in dirs are
// read anew each time, a later directory's before an earlier one's: drivers come
// and go. A bad file is only in the way of its own devices.
func Inject(s *specs.Spec, names, dirs []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(dirs) == 0 {
		return fmt.Errorf("config.CDI_devices: %s cannot be given: cdiSpecDirs is empty", strings.Join(names, ", "))
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read the CDI files in %s: %w", strings.Join(dirs, ", "), err)
	}
	unknown, err := cache.InjectDevices(s, names...)
	if len(unknown) > 0 {
		return fmt.Errorf("config.CDI_devices: no file in %s describes %s%s", strings.Join(dirs, ", "), strings.Join(unknown, ", "), badFiles(cache))
	}
	if err != nil {
		return fmt.Errorf("config.CDI_devices: %w", err)
	}
	return nil
}

// badFiles tells of files that could not be read, which may have had the device.
func badFiles(cache *cdi.Cache) string {
	var errs []error
	for _, list := range cache.GetErrors() {
		errs = append(errs, list...)
	}
	if len(errs) == 0 {
		return ""
	}
	return fmt.Sprintf(" (not usable: %v)", errors.Join(errs...))
}
