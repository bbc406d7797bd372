package numa

import (
	"fmt"
	"math"
	"strconv"
)

// The values of KubeletConfiguration.topologyManagerPolicy.
const (
	PolicyNone       = "none"
	PolicyBestEffort = "best-effort"
	PolicyRestricted = "restricted"
	PolicySingleNode = "single-numa-node"
)

// The values of KubeletConfiguration.topologyManagerScope.
const (
	ScopeContainer = "container"
	ScopePod       = "pod"
)

// The keys of KubeletConfiguration.topologyManagerPolicyOptions.
const (
	optionPreferClosest = "prefer-closest-numa-nodes"
	optionMaxNodes      = "max-allowable-numa-nodes"
)

// defaultMaxNodes keeps the number of combinations in bounds.
const defaultMaxNodes = 8

// Config is the topology manager's part of KubeletConfiguration.
type Config struct {
	Policy  string // empty is none
	Scope   string // empty is container
	Options map[string]string
}

// Aligner picks places on one machine by one policy.
type Aligner struct {
	policy        string
	scope         string
	preferClosest bool
	all           Mask
	distances     map[int][]uint64
}

// NewAligner is for a machine with these nodes, whose distances to each other
// are by node ID.
func NewAligner(config Config, nodes []int, distances map[int][]uint64) (*Aligner, error) {
	a := &Aligner{policy: config.Policy, scope: config.Scope, distances: distances}
	if a.scope == "" {
		a.scope = ScopeContainer
	}
	if a.scope != ScopeContainer && a.scope != ScopePod {
		return nil, fmt.Errorf("topologyManagerScope: unknown scope: %q", config.Scope)
	}
	switch a.policy {
	case "", PolicyNone:
		a.policy = PolicyNone
		return a, nil
	case PolicyBestEffort, PolicyRestricted, PolicySingleNode:
	default:
		return nil, fmt.Errorf("topologyManagerPolicy: unknown policy: %q", config.Policy)
	}
	maxNodes, err := a.parseOptions(config.Options)
	if err != nil {
		return nil, fmt.Errorf("topologyManagerPolicyOptions: %w", err)
	}
	if len(nodes) > maxNodes {
		return nil, fmt.Errorf("topologyManagerPolicy %s: unsupported on machines with more than %d NUMA Nodes", a.policy, maxNodes)
	}
	for _, node := range nodes {
		if node < 0 || node >= MaxNodes {
			return nil, fmt.Errorf("topologyManagerPolicy %s: NUMA node %d: the number must be below %d", a.policy, node, MaxNodes)
		}
		if a.preferClosest && distances[node] == nil {
			return nil, fmt.Errorf("topologyManagerPolicyOptions: %s: the distances of NUMA node %d are not known", optionPreferClosest, node)
		}
	}
	a.all = MaskOf(nodes...)
	return a, nil
}

func (a *Aligner) parseOptions(options map[string]string) (maxNodes int, err error) {
	maxNodes = defaultMaxNodes
	for name, value := range options {
		switch name {
		case optionPreferClosest:
			if a.preferClosest, err = strconv.ParseBool(value); err != nil {
				return 0, fmt.Errorf("bad value for option %q: %w", name, err)
			}
		case optionMaxNodes:
			if maxNodes, err = strconv.Atoi(value); err != nil {
				return 0, fmt.Errorf("unable to convert policy option to integer %q: %w", name, err)
			}
			if maxNodes < defaultMaxNodes {
				return 0, fmt.Errorf("the minimum value of %q should not be less than %d", name, defaultMaxNodes)
			}
		default:
			return 0, fmt.Errorf("unknown Topology Manager Policy option: %q", name)
		}
	}
	return maxNodes, nil
}

// Policy is the policy's name, never empty.
func (a *Aligner) Policy() string { return a.policy }

// Scope is ScopeContainer or ScopePod.
func (a *Aligner) Scope() string { return a.scope }

// Merge is the best place for all providers' resources together, and whether
// the policy lets a pod run there (kubelet: cm/topologymanager/policy.go).
func (a *Aligner) Merge(providers []Hints) (Hint, bool) {
	if a.policy == PolicyNone {
		return Hint{}, true
	}
	choices := flatten(providers)
	if a.policy == PolicySingleNode {
		choices = singleNode(choices)
	}
	best := a.best(choices)
	if a.policy == PolicySingleNode && best.Nodes == a.all {
		best.Nodes = 0
	}
	return best, a.policy == PolicyBestEffort || best.Preferred
}

// flatten is a list of hints for each resource; what has no preference may be
// anywhere, what cannot be had is tolerated nowhere.
func flatten(providers []Hints) [][]Hint {
	var choices [][]Hint
	for _, hints := range providers {
		if len(hints) == 0 {
			choices = append(choices, []Hint{{Preferred: true}})
			continue
		}
		for _, list := range hints {
			switch {
			case list == nil:
				choices = append(choices, []Hint{{Preferred: true}})
			case len(list) == 0:
				choices = append(choices, []Hint{{}})
			default:
				choices = append(choices, list)
			}
		}
	}
	return choices
}

func singleNode(choices [][]Hint) [][]Hint {
	single := make([][]Hint, len(choices))
	for i, hints := range choices {
		for _, h := range hints {
			if h.Preferred && h.Nodes.Count() <= 1 {
				single[i] = append(single[i], h)
			}
		}
	}
	return single
}

// best looks at every combination of one hint from each list.
func (a *Aligner) best(choices [][]Hint) Hint {
	// Among combinations that nobody prefers, the best are as wide as the
	// resource that needs the most nodes.
	width := 0
	for _, hints := range choices {
		narrowest := math.MaxInt
		for _, h := range hints {
			if h.Nodes != 0 {
				narrowest = min(narrowest, h.Nodes.Count())
			}
		}
		if narrowest != math.MaxInt {
			width = max(width, narrowest)
		}
	}
	best, found := Hint{Nodes: a.all}, false
	var combine func(i int, nodes, first Mask, preferred bool)
	combine = func(i int, nodes, first Mask, preferred bool) {
		if i < len(choices) {
			for _, h := range choices[i] {
				next, same, all := nodes, first, preferred && h.Preferred
				if h.Nodes != 0 {
					next &= h.Nodes
					if first == 0 {
						same = h.Nodes
					}
					all = all && h.Nodes == same
				}
				combine(i+1, next, same, all)
			}
			return
		}
		candidate := Hint{Nodes: nodes, Preferred: preferred}
		if nodes != 0 && (!found || a.better(candidate, best, width)) {
			best, found = candidate, true
		}
	}
	combine(0, a.all, 0, true)
	return best
}

// better says whether the candidate is to replace what is the best so far.
func (a *Aligner) better(candidate, current Hint, width int) bool {
	if candidate.Preferred != current.Preferred {
		return candidate.Preferred
	}
	if candidate.Preferred {
		return a.fitter(candidate.Nodes, current.Nodes)
	}
	// Nobody prefers either: what has just the width wins, then what is below
	// it and nearest, then what is above it.
	have, would := current.Nodes.Count(), candidate.Nodes.Count()
	switch {
	case have > width:
		return a.fitter(candidate.Nodes, current.Nodes)
	case have == width:
		return would == width && a.fitter(candidate.Nodes, current.Nodes)
	case would > width:
		return false
	case would != have:
		return would > have
	default:
		return a.fitter(candidate.Nodes, current.Nodes)
	}
}

func (a *Aligner) fitter(candidate, current Mask) bool {
	if candidate == current {
		return false
	}
	if a.preferClosest && a.policy != PolicySingleNode && candidate.Count() == current.Count() {
		d1, d2 := a.averageDistance(candidate), a.averageDistance(current)
		if d1 != d2 {
			return d1 < d2
		}
	}
	return candidate.NarrowerThan(current)
}

func (a *Aligner) averageDistance(m Mask) float64 {
	nodes := m.Nodes()
	var sum float64
	for _, from := range nodes {
		for _, to := range nodes {
			if row := a.distances[from]; to < len(row) {
				sum += float64(row[to])
			}
		}
	}
	return sum / float64(max(len(nodes)*len(nodes), 1))
}
