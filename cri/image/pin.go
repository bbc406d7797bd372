package image

import (
	"fmt"
	"regexp"
	"strings"
)

// pins says which images must not be collected, by their names.
type pins struct {
	exact    map[string]bool
	patterns []*regexp.Regexp
}

// newPins reads references; one with a * is a pattern of full names, in which
// * stands for any text: registry.k8s.io/*, */pause:*.
func newPins(refs []string) (pins, error) {
	p := pins{exact: map[string]bool{}}
	for _, ref := range refs {
		if strings.Contains(ref, "*") {
			quoted := strings.ReplaceAll(regexp.QuoteMeta(ref), `\*`, ".*")
			p.patterns = append(p.patterns, regexp.MustCompile("^(?:"+quoted+")$"))
			continue
		}
		if isID(ref) {
			p.exact[ref] = true
			continue
		}
		named, err := parseReference(ref)
		if err != nil {
			return p, fmt.Errorf("pinned images: %w", err)
		}
		p.exact[named.String()] = true
	}
	return p, nil
}

func (p pins) match(name string) bool {
	if p.exact[name] {
		return true
	}
	for _, pattern := range p.patterns {
		if pattern.MatchString(name) {
			return true
		}
	}
	return false
}
