package config

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
)

// SELinux is how pods and containers are labelled.
type SELinux struct {
	// Enable labels them, where the kernel has SELinux. Default: false.
	Enable bool `json:"enable,omitempty"`
	// CategoryRange is how many categories there are to keep pods apart: each
	// pod has two of them. Default: 1024.
	CategoryRange int `json:"categoryRange,omitempty"`
}

// maxCategories are those of the policies that distributions ship.
const maxCategories = 1024

// setDefaults has the values of containerd.
func (s *SELinux) setDefaults() {
	if s.CategoryRange == 0 {
		s.CategoryRange = maxCategories
	}
}

func (s *SELinux) validate(reject func(key, format string, args ...any)) {
	if s.CategoryRange < 2 || s.CategoryRange > maxCategories {
		reject("selinux.categoryRange", "%d must be between 2 and %d", s.CategoryRange, maxCategories)
	}
}

// Ulimits are DefaultUlimits; an error names the one that is wrong.
func (c *Config) Ulimits() ([]units.Ulimit, error) {
	var list []units.Ulimit
	var errs []error
	seen := map[string]bool{}
	for i, text := range c.DefaultUlimits {
		u, err := units.ParseUlimit(text)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("defaultUlimits[%d]: %q must be NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:524288: %w", i, text, err))
			continue
		case u.Soft < -1 || u.Hard < -1:
			errs = append(errs, fmt.Errorf("defaultUlimits[%d]: %q: a limit is a number, or -1 for none", i, text))
		case seen[u.Name]:
			errs = append(errs, fmt.Errorf("defaultUlimits[%d]: %q: %s has a limit already", i, text, u.Name))
		}
		seen[u.Name] = true
		list = append(list, *u)
	}
	return list, errors.Join(errs...)
}
