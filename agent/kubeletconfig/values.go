package kubeletconfig

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	netutils "k8s.io/utils/net"
)

// ipValue is a flag with an IP address. An empty one changes nothing.
type ipValue struct{ to *string }

func (v ipValue) Set(s string) error {
	if s == "" {
		return nil
	}
	if netutils.ParseIPSloppy(s) == nil {
		return fmt.Errorf("%q is not a valid IP address", s)
	}
	*v.to = s
	return nil
}

func (v ipValue) String() string {
	if v.to == nil {
		return ""
	}
	return *v.to
}

func (ipValue) Type() string { return "ip" }

// taintsValue is a flag with KEY=VALUE:EFFECT, separated by commas.
type taintsValue struct{ to *[]v1.Taint }

func (v taintsValue) Set(s string) error {
	*v.to = nil
	if s == "" {
		return nil
	}
	var taints []v1.Taint
	for text := range strings.SplitSeq(s, ",") {
		if strings.HasSuffix(text, "-") {
			continue // the kubelet reads such a one as kubectl taint does, and drops it
		}
		taint, err := parseTaint(text)
		if err != nil {
			return err
		}
		same := func(t v1.Taint) bool { return t.Key == taint.Key && t.Effect == taint.Effect }
		if slices.ContainsFunc(taints, same) {
			return fmt.Errorf("taint %q: its key and effect are there already", text)
		}
		taints = append(taints, taint)
	}
	*v.to = taints
	return nil
}

// parseTaint reads KEY[=VALUE]:EFFECT.
func parseTaint(text string) (v1.Taint, error) {
	id, effect, ok := strings.Cut(text, ":")
	if !ok || strings.Contains(effect, ":") {
		return v1.Taint{}, fmt.Errorf("taint %q must be KEY=VALUE:EFFECT", text)
	}
	key, value, _ := strings.Cut(id, "=")
	taint := v1.Taint{Key: key, Value: value, Effect: v1.TaintEffect(effect)}
	if problem := checkTaint(taint); problem != "" {
		return taint, fmt.Errorf("taint %q: %s", text, problem)
	}
	return taint, nil
}

// checkTaint says what is wrong with a taint, if something is (the kubelet's
// is pkg/util/taints, CheckTaintValidation).
func checkTaint(t v1.Taint) string {
	if errs := validation.IsQualifiedName(t.Key); len(errs) > 0 {
		return fmt.Sprintf("key %q: %s", t.Key, strings.Join(errs, "; "))
	}
	if t.Value != "" {
		if errs := validation.IsValidLabelValue(t.Value); len(errs) > 0 {
			return fmt.Sprintf("value %q: %s", t.Value, strings.Join(errs, "; "))
		}
	}
	effects := []v1.TaintEffect{v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute}
	if !slices.Contains(effects, t.Effect) {
		return fmt.Sprintf("effect %q must be NoSchedule, PreferNoSchedule or NoExecute", t.Effect)
	}
	return ""
}

func (v taintsValue) String() string {
	if v.to == nil {
		return ""
	}
	var taints []string
	for _, t := range *v.to {
		taints = append(taints, fmt.Sprintf("%s=%s:%s", t.Key, t.Value, t.Effect))
	}
	return strings.Join(taints, ",")
}

func (taintsValue) Type() string { return "[]v1.Taint" }

// reservedMemoryValue is a flag with NODE:TYPE=QUANTITY[,TYPE=QUANTITY...][;...].
// The first one replaces what a file said, further ones add to it.
type reservedMemoryValue struct {
	list *[]kubeletv1beta1.MemoryReservation
	set  bool
}

func (v *reservedMemoryValue) Set(s string) error {
	if s == "" {
		return nil
	}
	if !v.set {
		*v.list, v.set = nil, true
	}
	for text := range strings.SplitSeq(s, ";") {
		r, err := parseReservation(text)
		if err != nil {
			return err
		}
		*v.list = append(*v.list, r)
	}
	return nil
}

func parseReservation(text string) (kubeletv1beta1.MemoryReservation, error) {
	r := kubeletv1beta1.MemoryReservation{Limits: v1.ResourceList{}}
	bad := fmt.Errorf("reserved memory %q must be NUMANODE:TYPE=QUANTITY[,TYPE=QUANTITY...]", text)
	node, types, ok := strings.Cut(text, ":")
	if !ok || strings.Contains(types, ":") {
		return r, bad
	}
	n, err := strconv.ParseInt(node, 10, 32)
	if err != nil {
		return r, bad
	}
	r.NumaNode = int32(n)
	for limit := range strings.SplitSeq(types, ",") {
		name, amount, ok := strings.Cut(limit, "=")
		if !ok {
			return r, bad
		}
		if !isMemory(v1.ResourceName(name)) {
			return r, fmt.Errorf("reserved memory %q: %q must be memory or hugepages-SIZE", text, name)
		}
		q, err := resource.ParseQuantity(amount)
		if err != nil {
			return r, fmt.Errorf("reserved memory %q: %q: %w", text, amount, err)
		}
		r.Limits[v1.ResourceName(name)] = q
	}
	return r, nil
}

func isMemory(name v1.ResourceName) bool {
	return name == v1.ResourceMemory || strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
}

func (v *reservedMemoryValue) String() string {
	if v == nil || v.list == nil {
		return ""
	}
	var out []string
	for _, r := range *v.list {
		var limits []string
		for name, q := range r.Limits {
			limits = append(limits, fmt.Sprintf("%s=%s", name, q.String()))
		}
		slices.Sort(limits)
		out = append(out, fmt.Sprintf("%d:%s", r.NumaNode, strings.Join(limits, ",")))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func (*reservedMemoryValue) Type() string { return "reserved-memory" }
