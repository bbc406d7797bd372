package gc

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// ContainerPolicy are the kubelet's settings.
type ContainerPolicy struct {
	// MinAge is how long a container is left alone after it was made.
	MinAge time.Duration
	// MaxPerPodContainer is how many dead containers of a name stay; below
	// zero: all. The kubelet's default is 1.
	MaxPerPodContainer int
	// MaxContainers is how many dead containers stay on the node; below zero,
	// the kubelet's default: all.
	MaxContainers int
}

// Container is one that does not run.
type Container struct {
	ID, PodUID, Name string
	CreatedAt        time.Time
	// Started: it has run. One that has not may be about to.
	Started bool
	// Last: no container of that name and pod was made later.
	Last bool
}

// unit is what MaxPerPodContainer counts.
type unit struct{ podUID, name string }

// removable returns the dead containers to remove. With all, those of ended
// pods go too. The last container of a name of an active pod never goes,
// however many there are: its worker goes by it.
func (p ContainerPolicy) removable(dead []Container, owner func(podUID string) Owner, all bool, now time.Time) []Container {
	var remove []Container
	units := map[unit][]Container{}
	for _, c := range dead {
		// One from the future is old: the clock was set back.
		if age := now.Sub(c.CreatedAt); age >= 0 && age < p.MinAge {
			continue
		}
		switch o := owner(c.PodUID); {
		case o == Nobody, o == Ended && all:
			remove = append(remove, c)
		case o == Active && (c.Last || !c.Started):
		default:
			u := unit{c.PodUID, c.Name}
			units[u] = append(units[u], c)
		}
	}
	cut := func(most int) {
		for u, list := range units {
			newestFirst(list)
			if len(list) > most {
				remove = append(remove, list[most:]...)
				units[u] = list[:most]
			}
		}
	}
	if p.MaxPerPodContainer >= 0 {
		cut(p.MaxPerPodContainer)
	}
	if p.MaxContainers >= 0 && count(units) > p.MaxContainers {
		cut(max(p.MaxContainers/len(units), 1))
		rest := newestFirst(slices.Concat(slices.Collect(maps.Values(units))...))
		remove = append(remove, rest[min(p.MaxContainers, len(rest)):]...)
	}
	slices.SortFunc(remove, func(a, b Container) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	return remove
}

func newestFirst(list []Container) []Container {
	slices.SortFunc(list, func(a, b Container) int { return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID)) })
	return list
}

func count(units map[unit][]Container) int {
	n := 0
	for _, list := range units {
		n += len(list)
	}
	return n
}

// Sandbox is one sandbox.
type Sandbox struct {
	ID, PodUID string
	CreatedAt  time.Time
	Ready      bool
	Containers int // in it, dead or not
}

// removableSandboxes returns those that are not ready and empty: all of a pod
// that nobody has, or, with all, that has ended; of others all but the newest.
func removableSandboxes(sandboxes []Sandbox, owner func(podUID string) Owner, all bool) []Sandbox {
	newest := map[string]Sandbox{}
	for _, s := range sandboxes {
		if n, found := newest[s.PodUID]; !found || s.CreatedAt.After(n.CreatedAt) {
			newest[s.PodUID] = s
		}
	}
	var remove []Sandbox
	for _, s := range sandboxes {
		o := owner(s.PodUID)
		whole := o == Nobody || o == Ended && all
		if !s.Ready && s.Containers == 0 && (whole || newest[s.PodUID].ID != s.ID) {
			remove = append(remove, s)
		}
	}
	return remove
}
