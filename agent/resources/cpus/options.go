package cpus

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/numa"
)

// The values of KubeletConfiguration.cpuManagerPolicy.
const (
	PolicyNone   = "none"
	PolicyStatic = "static"
)

// Config is the CPU manager's part of KubeletConfiguration.
type Config struct {
	Policy  string            // empty is none
	Options map[string]string // cpuManagerPolicyOptions
	// AlphaOptions and NoBetaOptions are the feature gates
	// CPUManagerPolicyAlphaOptions and, turned off, CPUManagerPolicyBetaOptions.
	AlphaOptions, NoBetaOptions bool
	// ReservedMilli is what is reserved of the CPUs altogether, in thousandths.
	ReservedMilli int64
	// ReservedCPUs is reservedSystemCPUs; empty where they are reserved by amount.
	ReservedCPUs cpuset.CPUSet
}

type options struct {
	fullCores, distributeNodes, alignSocket, distributeCores, strictReservation, alignCaches bool
}

func (c Config) parseOptions(m *machine.Info, topologyPolicy string) (options, error) {
	var o options
	for name, value := range c.Options {
		var flag *bool
		alpha, beta := false, false
		switch name {
		case "full-pcpus-only":
			flag = &o.fullCores
		case "distribute-cpus-across-numa":
			flag, beta = &o.distributeNodes, true
		case "align-by-socket":
			flag, alpha = &o.alignSocket, true
		case "distribute-cpus-across-cores":
			flag, alpha = &o.distributeCores, true
		case "strict-cpu-reservation":
			flag = &o.strictReservation
		case "prefer-align-cpus-by-uncorecache":
			flag = &o.alignCaches
		default:
			return o, fmt.Errorf("unknown CPU Manager Policy option: %q", name)
		}
		if alpha && !c.AlphaOptions {
			return o, fmt.Errorf("CPU Manager Policy Alpha-level Options not enabled, but option %q provided", name)
		}
		if beta && c.NoBetaOptions {
			return o, fmt.Errorf("CPU Manager Policy Beta-level Options not enabled, but option %q provided", name)
		}
		var err error
		if *flag, err = strconv.ParseBool(value); err != nil {
			return o, fmt.Errorf("bad value for option %q: %w", name, err)
		}
	}
	exclusive := func(a, b string) error {
		return fmt.Errorf("static policy options %s and %s can not be used at the same time", a, b)
	}
	switch {
	case o.fullCores && o.distributeCores:
		return o, exclusive("full-pcpus-only", "distribute-cpus-across-cores")
	case o.distributeNodes && o.distributeCores:
		return o, exclusive("distribute-cpus-across-numa", "distribute-cpus-across-cores")
	case o.alignCaches && o.distributeCores:
		return o, exclusive("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores")
	case o.alignCaches && o.distributeNodes:
		return o, exclusive("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa")
	case o.alignSocket && topologyPolicy == numa.PolicySingleNode:
		return o, fmt.Errorf("topology manager policy %s is incompatible with option align-by-socket", topologyPolicy)
	case o.alignSocket && m.Sockets() > m.CPUNodes():
		return o, errors.New("align-by-socket is not compatible with hardware where number of sockets are more than number of NUMA")
	}
	return o, nil
}

// reserve picks the CPUs that are never exclusive.
func (p *Policy) reserve(c Config) (cpuset.CPUSet, error) {
	if c.ReservedMilli <= 0 {
		return cpuset.CPUSet{}, errors.New("the static policy requires systemReserved.cpu + kubeReserved.cpu to be greater than zero")
	}
	count := int((c.ReservedMilli + 999) / 1000)
	reserved := c.ReservedCPUs
	if reserved.IsEmpty() {
		var err error
		if reserved, err = p.pick(p.machine.Set(nil), count); err != nil {
			return cpuset.CPUSet{}, fmt.Errorf("reserve CPUs: %w", err)
		}
	}
	if reserved.Size() != count {
		return cpuset.CPUSet{}, fmt.Errorf("unable to reserve the required amount of CPUs (size of %s did not equal %d)", reserved, count)
	}
	if unknown := reserved.Difference(p.machine.Set(nil)); !unknown.IsEmpty() {
		return cpuset.CPUSet{}, fmt.Errorf("reservedSystemCPUs: CPUs %s do not exist or are offline", unknown)
	}
	return reserved, nil
}

// wholeCores are the CPUs and those that share a core with them.
func wholeCores(m *machine.Info, some cpuset.CPUSet) cpuset.CPUSet {
	var cores []int
	for _, c := range m.CPUs {
		if some.Contains(c.ID) {
			cores = append(cores, c.Core)
		}
	}
	return m.Set(func(c machine.CPU) bool { return slices.Contains(cores, c.Core) })
}
