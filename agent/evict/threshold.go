package evict

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-io/berth/agent/usage"
)

// Value is an amount, or a part of the capacity.
type Value struct {
	// Amount in bytes or pieces; used where Fraction is zero.
	Amount int64
	// Fraction of the capacity. The kubelet calculates with a float32, and users
	// see the result.
	Fraction float32
	// Text is how the configuration writes the amount.
	Text string
}

// of is the amount for a capacity.
func (v Value) of(capacity int64) int64 {
	if v.Fraction > 0 {
		return int64(float64(capacity) * float64(v.Fraction))
	}
	return v.Amount
}

// Threshold is met when less than Value is available.
type Threshold struct {
	Signal Signal
	Value  Value
	// Grace is how long the threshold must be met before pods end for it; zero
	// is a hard threshold.
	Grace time.Duration
	// MinReclaim is how much more than Value must be available before the
	// threshold counts as resolved; zero: nothing more.
	MinReclaim Value
}

func (t Threshold) hard() bool { return t.Grace == 0 }

// Settings are the fields of the kubelet's configuration.
type Settings struct {
	Hard, Soft, SoftGracePeriod, MinimumReclaim map[string]string // by signal; a nil Hard is DefaultHard
	// MergeDefaults adds what Hard does not name of DefaultHard.
	MergeDefaults bool
	// PodsEnforced: enforceNodeAllocatable has pods; the hard memory threshold is
	// then for what the pods may use too.
	PodsEnforced bool
}

// DefaultHard are the kubelet's hard thresholds (pkg/kubelet/eviction/defaults_linux.go).
func DefaultHard() map[string]string {
	return map[string]string{
		"memory.available":   "100Mi",
		"nodefs.available":   "10%",
		"nodefs.inodesFree":  "5%",
		"imagefs.available":  "15%",
		"imagefs.inodesFree": "5%",
	}
}

// Thresholds reads the settings; the error names the field. Thresholds come in
// a fixed order: hard before soft, by signal.
func (s Settings) Thresholds() ([]Threshold, error) {
	hard := s.Hard
	if hard == nil {
		hard = DefaultHard()
	} else if s.MergeDefaults {
		hard = DefaultHard()
		maps.Copy(hard, s.Hard)
	}
	all, err := readThresholds("evictionHard", hard)
	if err != nil {
		return nil, err
	}
	soft, err := readThresholds("evictionSoft", s.Soft)
	if err != nil {
		return nil, err
	}
	graces, err := readEach("evictionSoftGracePeriod", s.SoftGracePeriod, readGrace)
	if err != nil {
		return nil, err
	}
	least, err := readEach("evictionMinimumReclaim", s.MinimumReclaim, readReclaim)
	if err != nil {
		return nil, err
	}
	for i := range soft {
		grace, found := graces[soft[i].Signal]
		if !found {
			return nil, fmt.Errorf("evictionSoft[%s]: evictionSoftGracePeriod has no grace period for it", soft[i].Signal)
		}
		soft[i].Grace = grace
	}
	all = append(all, soft...)
	for i := range all {
		all[i].MinReclaim = least[all[i].Signal]
		if s.PodsEnforced && all[i].Signal == MemoryAvailable && all[i].hard() {
			t := all[i]
			t.Signal = AllocatableMemoryAvailable
			all = append(all, t)
		}
	}
	return all, nil
}

func readThresholds(field string, settings map[string]string) ([]Threshold, error) {
	values, err := readEach(field, settings, readThreshold)
	if err != nil {
		return nil, err
	}
	var thresholds []Threshold
	for _, signal := range slices.Sorted(maps.Keys(values)) {
		if v := values[signal]; v != nil {
			thresholds = append(thresholds, Threshold{Signal: signal, Value: *v})
		}
	}
	return thresholds, nil
}

func readEach[T any](field string, settings map[string]string, read func(string) (T, error)) (map[Signal]T, error) {
	out := map[Signal]T{}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		signal := Signal(name)
		if _, known := meanings[signal]; !known {
			return nil, fmt.Errorf("%s[%s]: there is no such signal; there are %v", field, name, slices.Sorted(maps.Keys(meanings)))
		}
		value, err := read(settings[name])
		if err != nil {
			return nil, fmt.Errorf("%s[%s]: %w", field, name, err)
		}
		out[signal] = value
	}
	return out, nil
}

// readThreshold returns nil for 0% and 100%, which switch a threshold off.
func readThreshold(text string) (*Value, error) {
	if text == "0%" || text == "100%" {
		return nil, nil
	}
	v, err := readValue(text)
	if err != nil {
		return nil, err
	}
	if v.Fraction > 1 || (v.Fraction == 0 && !strings.HasSuffix(text, "%") && v.Amount <= 0) || v.Fraction < 0 {
		return nil, fmt.Errorf("%q must be above 0, and at most 100%%", text)
	}
	return &v, nil
}

func readReclaim(text string) (Value, error) {
	v, err := readValue(text)
	if err == nil && (v.Amount < 0 || (strings.HasSuffix(text, "%") && v.Fraction <= 0)) {
		err = fmt.Errorf("%q must not be negative, and a percentage above 0", text)
	}
	return v, err
}

func readValue(text string) (Value, error) {
	if number, percent := strings.CutSuffix(text, "%"); percent {
		f, err := strconv.ParseFloat(number, 32)
		if err != nil || f != f {
			return Value{}, fmt.Errorf("%q is not a percentage", text)
		}
		return Value{Fraction: float32(f) / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return Value{}, fmt.Errorf("%q is neither a quantity nor a percentage: %w", text, err)
	}
	return Value{Amount: q.Value(), Text: q.String()}, nil
}

func readGrace(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 30s: %w", text, err)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

// forLayout puts the thresholds of containerfs in place: they are those of the
// file system on which writable layers are, whatever the configuration says
// (UpdateContainerFsThresholds).
func forLayout(thresholds []Threshold, layout usage.Layout) []Threshold {
	from := map[Signal]Signal{NodeFSAvailable: ContainerFSAvailable, NodeFSInodesFree: ContainerFSInodesFree}
	if layout == usage.ImagesApart {
		from = map[Signal]Signal{ImageFSAvailable: ContainerFSAvailable, ImageFSInodesFree: ContainerFSInodesFree}
	}
	var out []Threshold
	for _, t := range thresholds {
		if t.Signal != ContainerFSAvailable && t.Signal != ContainerFSInodesFree {
			out = append(out, t)
		}
	}
	for _, t := range slices.Clone(out) {
		if to, found := from[t.Signal]; found {
			t.Signal = to
			out = append(out, t)
		}
	}
	return out
}
