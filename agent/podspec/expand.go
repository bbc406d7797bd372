package podspec

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// expand replaces the $(NAME) references in s. $$ is an escaped $, so $$(NAME)
// stays $(NAME); a reference that lookup does not know, an unclosed one and
// any other $ are kept as they are.
func expand(s string, lookup func(name string) (string, bool)) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		switch s[0] {
		case '$':
			b.WriteByte('$')
			s = s[1:]
		case '(':
			end := strings.IndexByte(s, ')')
			if end < 0 {
				b.WriteString("$(")
				s = s[1:]
				continue
			}
			if value, ok := lookup(s[1:end]); ok {
				b.WriteString(value)
			} else {
				b.WriteByte('$')
				b.WriteString(s[:end+1])
			}
			s = s[end+1:]
		default:
			b.WriteByte('$')
		}
	}
}

func expandAll(in []string, lookup func(string) (string, bool)) []string {
	var out []string
	for _, s := range in {
		out = append(out, expand(s, lookup))
	}
	return out
}

func envLookup(env []*runtimeapi.KeyValue) func(string) (string, bool) {
	values := make(map[string]string, len(env))
	for _, kv := range env {
		values[kv.Key] = string(kv.Value)
	}
	return func(name string) (string, bool) {
		v, ok := values[name]
		return v, ok
	}
}

// ExpandStatic expands a command with the variables that a container's spec
// gives a plain value; the others stay references. Probes run such commands:
// the kubelet resolves nothing for them.
func ExpandStatic(command []string, env []v1.EnvVar) []string {
	values := make(map[string]string, len(env))
	for _, e := range env {
		values[e.Name] = e.Value
	}
	return expandAll(command, func(name string) (string, bool) {
		v, ok := values[name]
		return v, ok
	})
}
