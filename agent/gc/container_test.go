package gc

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func exited(id, pod, name string, age time.Duration) Container {
	return Container{ID: id, PodUID: pod, Name: name, CreatedAt: now.Add(-age), Started: true}
}

func containerIDs(list []Container) []string {
	var out []string
	for _, c := range list {
		out = append(out, c.ID)
	}
	return out
}

// owners by the beginning of the UID.
func owners(uid string) Owner {
	switch {
	case strings.HasPrefix(uid, "active"):
		return Active
	case strings.HasPrefix(uid, "ended"):
		return Ended
	}
	return Nobody
}

func last(c Container) Container         { c.Last = true; return c }
func neverStarted(c Container) Container { c.Started = false; return c }

func TestAClockThatIsSetBackKeepsNoDeadContainer(t *testing.T) {
	p := ContainerPolicy{MinAge: time.Minute, MaxPerPodContainer: -1, MaxContainers: -1}
	for age, want := range map[time.Duration]int{-time.Hour: 1, time.Second: 0, time.Hour: 1} {
		if got := p.removable([]Container{exited("c", "nobody", "a", age)}, owners, false, now); len(got) != want {
			t.Errorf("of the age %s: %d removed, want %d", age, len(got), want)
		}
	}
}

func TestDeadContainersGoByTheirOwner(t *testing.T) {
	all := []Container{
		last(exited("active last", "active", "a", time.Minute)),
		exited("active one before", "active", "a", 2*time.Minute),
		exited("active two before", "active", "a", 3*time.Minute),
		last(exited("active other", "active", "b", time.Minute)),
		neverStarted(exited("active made", "active", "c", time.Minute)),
		last(exited("ended last", "ended", "a", time.Minute)),
		exited("ended one before", "ended", "a", 2*time.Minute),
		last(exited("nobody's", "nobody", "a", time.Minute)),
		neverStarted(exited("nobody's, made", "nobody", "a", 2*time.Minute)),
		last(exited("nobody's, young", "nobody", "b", time.Second)),
	}
	for _, test := range []struct {
		name string
		p    ContainerPolicy
		all  bool
		want []string
	}{
		{"the defaults", ContainerPolicy{MaxPerPodContainer: 1, MaxContainers: -1}, false,
			[]string{"active two before", "ended one before", "nobody's, made", "nobody's", "nobody's, young"}},
		{"with an age", ContainerPolicy{MinAge: 90 * time.Second, MaxPerPodContainer: 1, MaxContainers: -1}, false,
			[]string{"active two before", "nobody's, made"}},
		{"without a limit", ContainerPolicy{MaxPerPodContainer: -1, MaxContainers: -1}, false,
			[]string{"nobody's, made", "nobody's", "nobody's, young"}},
		{"the disk is full", ContainerPolicy{MaxPerPodContainer: 1, MaxContainers: -1}, true,
			[]string{"active two before", "ended one before", "nobody's, made", "ended last", "nobody's", "nobody's, young"}},
		{"none at all", ContainerPolicy{MaxPerPodContainer: 0, MaxContainers: -1}, false,
			[]string{"active two before", "active one before", "ended one before", "nobody's, made", "ended last", "nobody's", "nobody's, young"}},
		{"a limit for all", ContainerPolicy{MaxPerPodContainer: -1, MaxContainers: 1}, false,
			[]string{"active two before", "active one before", "ended one before", "nobody's, made", "nobody's", "nobody's, young"}},
	} {
		if diff := cmp.Diff(test.want, containerIDs(test.p.removable(all, owners, test.all, now))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

// Nothing goes twice, an active pod keeps the last of each name, and the
// limits hold for the rest.
func TestLimitsHoldAndActivePodsKeepTheirLast(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 500 {
		var all []Container
		lasts := map[unit]int{}
		for i := range r.IntN(30) {
			c := exited(string(rune('A'+i)), []string{"active1", "active2", "ended1", "nobody"}[r.IntN(4)], []string{"a", "b"}[r.IntN(2)], time.Duration(i)*time.Minute)
			if u := (unit{c.PodUID, c.Name}); lasts[u] == 0 {
				c.Last = true
				lasts[u]++
			}
			all = append(all, c)
		}
		p := ContainerPolicy{MaxPerPodContainer: r.IntN(4) - 1, MaxContainers: r.IntN(8) - 1}
		removed := map[string]bool{}
		for _, c := range p.removable(all, owners, r.IntN(2) == 0, now) {
			if removed[c.ID] {
				t.Fatalf("%+v: %s goes twice", p, c.ID)
			}
			removed[c.ID] = true
		}
		left, perUnit := 0, map[unit]int{}
		for _, c := range all {
			o := owners(c.PodUID)
			if o == Nobody && !removed[c.ID] || o == Active && c.Last && removed[c.ID] {
				t.Fatalf("%+v: %+v removed %v", p, c, removed[c.ID])
			}
			if !removed[c.ID] && !(o == Active && c.Last) {
				left++
				perUnit[unit{c.PodUID, c.Name}]++
			}
		}
		if p.MaxContainers >= 0 && left > p.MaxContainers {
			t.Fatalf("%+v: %d are left", p, left)
		}
		for u, n := range perUnit {
			if p.MaxPerPodContainer >= 0 && n > p.MaxPerPodContainer {
				t.Fatalf("%+v: %d of %v are left", p, n, u)
			}
		}
	}
}

func TestEmptySandboxesGo(t *testing.T) {
	sandbox := func(id, pod string, age time.Duration, ready bool, containers int) Sandbox {
		return Sandbox{ID: id, PodUID: pod, CreatedAt: now.Add(-age), Ready: ready, Containers: containers}
	}
	all := []Sandbox{
		sandbox("active newest", "active", 1, false, 0), sandbox("active old", "active", 2, false, 0),
		sandbox("active old, in use", "active", 3, false, 1), sandbox("active old, ready", "active", 4, true, 0),
		sandbox("ended newest", "ended", 1, false, 0), sandbox("nobody's", "nobody", 1, false, 0), sandbox("nobody's, ready", "nobody2", 1, true, 0),
	}
	for full, want := range map[bool][]string{false: {"active old", "nobody's"}, true: {"active old", "ended newest", "nobody's"}} {
		var got []string
		for _, s := range removableSandboxes(all, owners, full) {
			got = append(got, s.ID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("with all %v (-want +got):\n%s", full, diff)
		}
	}
}
