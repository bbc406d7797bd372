package kubeletconfig

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// gateText has the kubelet's feature gates, one a line: name, default, stage,
// "locked" where the default cannot be changed, and needs=NAMES. It comes from
// tests/tools/kubeletfacts, and a test compares them.
//
//go:embed gates.txt
var gateText string

// The two gates that set all of a stage (k8s.io/component-base/featuregate).
const (
	allAlpha = "AllAlpha"
	allBeta  = "AllBeta"
)

// honouredGates are those that change what Berth does.
var honouredGates = []string{
	"CPUManagerPolicyAlphaOptions", "CPUManagerPolicyBetaOptions", "ComponentFlagz", "ComponentStatusz", "KubeletCrashLoopBackOffMax", "KubeletEnsureSecretPulledImages", "MemoryQoS", "RotateKubeletServerCertificate",
}

type gate struct {
	on     bool
	stage  string
	locked bool
	needs  []string
}

// gates are feature gates by name, with what was said about them.
type gates map[string]gate

func (g gates) enabled(name string) bool { return g[name].on }

// newGates applies what a configuration says. An unknown gate, a locked one and
// one whose needs are off are errors, in the kubelet's words.
func newGates(said map[string]bool) (gates, error) {
	g := knownGates()
	for _, all := range []struct{ name, stage string }{{allAlpha, "alpha"}, {allBeta, "beta"}} {
		on, found := said[all.name]
		if !found {
			continue
		}
		for name, one := range g {
			if one.stage == all.stage && !one.locked {
				one.on = on
				g[name] = one
			}
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(said)) {
		on := said[name]
		one, known := g[name]
		switch {
		case name == allAlpha || name == allBeta:
		case !known:
			errs = append(errs, fmt.Errorf("unrecognized feature gate: %s", name))
		case one.locked && one.on != on:
			errs = append(errs, fmt.Errorf("cannot set feature gate %s to %v, feature is locked to %v", name, on, one.on))
		default:
			one.on = on
			g[name] = one
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return g, g.checkNeeds()
}

func (g gates) checkNeeds() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(g)) {
		if !g[name].on {
			continue
		}
		var off []string
		for _, need := range g[name].needs {
			if !g[need].on {
				off = append(off, need)
			}
		}
		if len(off) > 0 {
			errs = append(errs, fmt.Errorf("%s is enabled, but depends on features that are disabled: %v", name, off))
		}
	}
	return errors.Join(errs...)
}

func knownGates() gates {
	g := gates{}
	for line := range strings.Lines(gateText) {
		fields := strings.Fields(line)
		one := gate{on: fields[1] == "true", stage: fields[2]}
		for _, f := range fields[3:] {
			if needs, found := strings.CutPrefix(f, "needs="); found {
				one.needs = strings.Split(needs, ",")
			} else {
				one.locked = true
			}
		}
		g[fields[0]] = one
	}
	return g
}

// gateWarnings name the gates that were moved from their default and change
// nothing here.
func gateWarnings(said map[string]bool) []string {
	var out []string
	known := knownGates()
	for _, name := range slices.Sorted(maps.Keys(said)) {
		if slices.Contains(honouredGates, name) || said[name] == known[name].on {
			continue
		}
		out = append(out, fmt.Sprintf("featureGates.%s has no effect: Berth does the same with and without it", name))
	}
	return out
}
