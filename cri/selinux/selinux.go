// Package selinux decides how pods and containers are labelled: the context of
// their processes and that of their files. It owns the pairs of categories that
// keep pods apart. What it has to know of the kernel and of the policy is behind
// an interface, so that every rule here is a line in a table test.
//
// The rules are those of other CRI runtimes. A pod gets a pair of categories
// that no other has; its containers have the pod's, and the options that the
// request has for them. Where the two differ, what CRI-O does is done: an option
// that a container does not name is the pod's, so that a container of another
// type can still use the pod's files.
package selinux

import (
	"fmt"
	"regexp"

	selinux "github.com/opencontainers/selinux/go-selinux"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Policy is what is asked of the kernel and of the policy that it has loaded.
type Policy interface {
	// Contexts are those of confined containers, of their processes and of
	// their files, without categories.
	Contexts() (process, file string)
	// Check returns an error where the policy does not know a context.
	Check(context string) error
	// Relabel gives a file, or a directory with all that is in it, a context.
	// What is on a file system without labels is left alone.
	Relabel(path, context string) error
}

// Label is how a pod or a container is labelled; the zero Label is for none.
type Label struct {
	// Process is the context of its processes; empty: what the policy makes of
	// the runtime's own.
	Process string `json:"process,omitempty"`
	// File is the context of its files. Its level is the one that is reserved.
	File string `json:"file,omitempty"`
}

// privilegedType is the domain of privileged containers, which the policy
// confines no more than the host's own services (container-selinux).
const privilegedType = "spc_t"

// optionsField is where a request has its options.
const optionsField = "linux.security_context.selinux_options"

// Labels gives out labels. A nil *Labels, of a node that labels nothing, gives
// out the zero Label and relabels nothing.
type Labels struct {
	policy        Policy
	process, file selinux.Context // without categories
	privileged    string          // empty: the policy does not know it
	levels        *levels
}

// New takes the number of categories that pairs are made of.
func New(policy Policy, categories int) (*Labels, error) {
	process, file := policy.Contexts()
	if process == "" || file == "" {
		return nil, fmt.Errorf("the SELinux policy has no contexts for containers: install container-selinux, or switch selinux.enable off")
	}
	l := &Labels{policy: policy}
	var err error
	if l.process, err = selinux.NewContext(process); err != nil {
		return nil, fmt.Errorf("the SELinux policy's context of containers, %q: %w", process, err)
	}
	if l.file, err = selinux.NewContext(file); err != nil {
		return nil, fmt.Errorf("the SELinux policy's context of containers' files, %q: %w", file, err)
	}
	l.levels = newLevels(sensitivity(l.process["level"]), categories)
	if spc := with(l.process, "type", privilegedType).Get(); policy.Check(spc) == nil {
		l.privileged = spc
	}
	return l, nil
}

// Pod labels a sandbox. Its level stays reserved until the label is released.
func (l *Labels) Pod(o *runtimeapi.SELinuxOption) (Label, error) {
	if l == nil {
		return Label{}, nil
	}
	return l.reserve(l.process, o, o.GetLevel() == "")
}

// Container labels a container of a pod. Its level, which is usually the pod's,
// stays reserved until the label is released.
func (l *Labels) Container(pod Label, o *runtimeapi.SELinuxOption, privileged bool) (Label, error) {
	if l == nil {
		return Label{}, nil
	}
	base, fresh := l.process, o.GetLevel() == "" // of a pod from before labels were switched on
	if pod.Process != "" {
		var err error
		if base, err = selinux.NewContext(pod.Process); err != nil {
			return Label{}, fmt.Errorf("the label of the pod, %q: %w", pod.Process, err)
		}
		fresh = false
	}
	label, err := l.reserve(base, o, fresh)
	if privileged {
		label.Process = l.privileged
	}
	return label, err
}

// reserve makes a label of a base and the options that a request has, with a
// fresh level or with that of the two.
func (l *Labels) reserve(base selinux.Context, o *runtimeapi.SELinuxOption, fresh bool) (Label, error) {
	process := base
	for _, option := range options(o) {
		if option.value != "" {
			process = with(process, option.key, option.value)
		}
	}
	if fresh {
		level, err := l.levels.fresh()
		if err != nil {
			return Label{}, err
		}
		process = with(process, "level", level)
	} else {
		l.levels.retain(process["level"])
	}
	file := with(l.file, "level", process["level"])
	if o.GetUser() != "" {
		file = with(file, "user", o.GetUser())
	}
	label := Label{Process: process.Get(), File: file.Get()}
	for _, context := range []string{label.Process, label.File} {
		if err := l.policy.Check(context); err != nil {
			l.levels.release(process["level"])
			return Label{}, fmt.Errorf("%s: the SELinux policy does not know the context %s: %w", optionsField, context, err)
		}
	}
	return label, nil
}

// Retain reserves the level of a label from a record once more.
func (l *Labels) Retain(label Label) {
	if l != nil {
		l.levels.retain(levelOf(label))
	}
}

// Release gives the level of a label back, if nobody else has it.
func (l *Labels) Release(label Label) {
	if l != nil {
		l.levels.release(levelOf(label))
	}
}

// Relabel gives what is at path the label's context of files. Without a label
// it does nothing.
func (l *Labels) Relabel(path string, label Label) error {
	if l == nil || label.File == "" {
		return nil
	}
	if err := l.policy.Relabel(path, label.File); err != nil {
		return fmt.Errorf("give %s the SELinux label %s: %w", path, label.File, err)
	}
	return nil
}

// levelOf is empty for a label without.
func levelOf(label Label) string {
	c, err := selinux.NewContext(label.File)
	if err != nil {
		return ""
	}
	return c["level"]
}

// with is a context with one part replaced.
func with(c selinux.Context, key, value string) selinux.Context {
	changed := selinux.Context{}
	for k, v := range c {
		changed[k] = v
	}
	changed[key] = value
	return changed
}

type option struct{ field, key, value string }

func options(o *runtimeapi.SELinuxOption) []option {
	return []option{
		{optionsField + ".user", "user", o.GetUser()},
		{optionsField + ".role", "role", o.GetRole()},
		{optionsField + ".type", "type", o.GetType()},
		{optionsField + ".level", "level", o.GetLevel()},
	}
}

var (
	namePattern = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	// levelPattern is what other runtimes take: s0, s0-s1, s0:c1,c2, s0:c1.c5.
	levelPattern = regexp.MustCompile(`^s\d{1,2}(-s\d{1,2})?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$`)
)

// Validate refuses options that are no part of a context, on any host. The
// error names the field.
func Validate(o *runtimeapi.SELinuxOption) error {
	for _, option := range options(o) {
		pattern := namePattern
		if option.key == "level" {
			pattern = levelPattern
		}
		if option.value != "" && !pattern.MatchString(option.value) {
			return fmt.Errorf("config.%s: %q is not a %s of SELinux", option.field, option.value, option.key)
		}
	}
	return nil
}
