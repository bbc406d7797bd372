package manifest

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// lineOf returns the line of the node that a field path such as
// spec.containers[0].env[1].name leads to, or of the last node on the way that
// exists: a required field that is missing is reported where it should be.
func lineOf(n *yaml.Node, path string) int {
	d := newDecoder("") // its complaints were made when the document was decoded
	line := n.Line
	for path != "" {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		var step string
		step, path = nextStep(path)
		next := (*yaml.Node)(nil)
		switch n.Kind {
		case yaml.SequenceNode:
			if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
				next, line = n.Content[i], n.Content[i].Line
			}
		case yaml.MappingNode:
			if p := find(d, n, step); p != nil {
				next, line = p.value, p.key.Line
			}
		}
		if next == nil {
			return line
		}
		n = next
	}
	return line
}

// find returns the pair with the given key, of the mapping itself or merged into it.
func find(d *decoder, n *yaml.Node, key string) *pair {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return &pair{n.Content[i], n.Content[i+1]}
		}
	}
	for _, p := range d.pairs(n, nil, 0) {
		if p.key.Value == key {
			return &p
		}
	}
	return nil
}

// nextStep splits "a.b[0]" into "a" and "b[0]", "[x.y].z" into "x.y" and "z".
func nextStep(path string) (step, rest string) {
	path = strings.TrimPrefix(path, ".")
	if strings.HasPrefix(path, "[") {
		step, rest, _ = strings.Cut(path[1:], "]")
		return step, rest
	}
	if i := strings.IndexAny(path, ".["); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}
