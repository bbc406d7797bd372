package manifest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// maxNodes bounds what a document may grow to when its aliases are
	// followed: a 3 MiB file without aliases stays well below it, a "billion
	// laughs" file does not.
	maxNodes = 2_000_000
	maxDepth = 64
)

// decoder, one for each file, fills Go values from YAML nodes by their JSON field names.
//
// It exists because the line of an offending node and the path of its field
// are both needed, and the usual detour through JSON loses the former. Types
// with their own JSON form (quantities, times, int-or-string) are decoded by it.
type decoder struct {
	file      string
	fields    map[reflect.Type]map[string][]int
	nodes     int  // visited so far, each alias's target counted every time
	exhausted bool // maxNodes or maxDepth was met
	secret    bool // the values of the document must not appear in errors
	errs      []Rejection
}

func newDecoder(file string) *decoder {
	return &decoder{file: file, fields: map[reflect.Type]map[string][]int{}}
}

func (d *decoder) reject(n *yaml.Node, path *field.Path, format string, args ...any) {
	r := Rejection{File: d.file, Line: n.Line, Reason: fmt.Sprintf(format, args...)}
	if path != nil {
		r.Field = path.String()
	}
	d.errs = append(d.errs, r)
	d.exhausted = d.exhausted || len(d.errs) > 10*maxRejections
}

// visit follows an alias and accounts for the node; nil means that the
// document is too large and is not looked at any further.
func (d *decoder) visit(n *yaml.Node, path *field.Path, depth int) *yaml.Node {
	d.nodes++
	if d.exhausted {
		return nil
	}
	if d.nodes > maxNodes || depth > maxDepth {
		d.exhausted = true
		d.reject(n, path, "nested more than %d deep, or too large when aliases are followed", maxDepth)
		return nil
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func (d *decoder) decode(n *yaml.Node, v reflect.Value, path *field.Path, depth int) {
	if n = d.visit(n, path, depth); n == nil || isNull(n) {
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		d.decodeCustom(n, u, path, depth)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.decodeStruct(n, v, path, depth)
	case reflect.Map:
		d.decodeMap(n, v, path, depth)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			d.decodeBytes(n, v, path)
			return
		}
		if n.Kind != yaml.SequenceNode {
			d.reject(n, path, "must be a list, not %s", d.describe(n))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, item := range n.Content {
			d.decode(item, v.Index(i), path.Index(i), depth+1)
		}
	case reflect.Interface:
		if x := d.plain(n, path, depth); x != nil {
			v.Set(reflect.ValueOf(x))
		}
	default:
		d.decodeScalar(n, v, path)
	}
}

func (d *decoder) decodeScalar(n *yaml.Node, v reflect.Value, path *field.Path) {
	switch v.Kind() {
	case reflect.String:
		if tag := scalarTag(n); tag != "!!str" {
			hint := ""
			if n.Kind == yaml.ScalarNode {
				hint = "; put it in quotes"
			}
			d.reject(n, path, "must be a string, not %s%s", d.describe(n), hint)
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if scalarTag(n) != "!!bool" {
			d.reject(n, path, "must be true or false, not %s", d.describe(n))
			return
		}
		v.SetBool(boolValue(n.Value))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		var i int64
		if scalarTag(n) != "!!int" || n.Decode(&i) != nil || v.OverflowInt(i) {
			d.reject(n, path, "must be a whole number of %d bits, not %s", v.Type().Bits(), d.describe(n))
			return
		}
		v.SetInt(i)
	case reflect.Float32, reflect.Float64:
		var f float64
		if tag := scalarTag(n); tag != "!!int" && tag != "!!float" || n.Decode(&f) != nil {
			d.reject(n, path, "must be a number, not %s", d.describe(n))
			return
		}
		v.SetFloat(f)
	default:
		d.reject(n, path, "cannot be set from a manifest")
	}
}

func (d *decoder) decodeStruct(n *yaml.Node, v reflect.Value, path *field.Path, depth int) {
	if n.Kind != yaml.MappingNode {
		d.reject(n, path, "must be a mapping, not %s", d.describe(n))
		return
	}
	fields := d.fieldsOf(v.Type())
	for _, p := range d.pairs(n, path, depth) {
		index, ok := fields[p.key.Value]
		if !ok {
			hint := ""
			if like := closest(p.key.Value, fields); like != "" {
				hint = fmt.Sprintf(" (did you mean %s?)", like)
			}
			d.reject(p.key, path.Child(p.key.Value), "unknown field%s", hint)
			continue
		}
		d.decode(p.value, v.FieldByIndex(index), path.Child(p.key.Value), depth+1)
	}
}

func (d *decoder) decodeMap(n *yaml.Node, v reflect.Value, path *field.Path, depth int) {
	if n.Kind != yaml.MappingNode {
		d.reject(n, path, "must be a mapping, not %s", d.describe(n))
		return
	}
	t := v.Type()
	v.Set(reflect.MakeMap(t))
	for _, p := range d.pairs(n, path, depth) {
		elem := reflect.New(t.Elem()).Elem()
		d.decode(p.value, elem, path.Key(p.key.Value), depth+1)
		v.SetMapIndex(reflect.ValueOf(p.key.Value).Convert(t.Key()), elem)
	}
}

func (d *decoder) decodeBytes(n *yaml.Node, v reflect.Value, path *field.Path) {
	if scalarTag(n) != "!!str" && scalarTag(n) != "!!binary" {
		d.reject(n, path, "must be a base64 string, not %s", d.describe(n))
		return
	}
	b, err := base64.StdEncoding.DecodeString(strings.Map(dropSpace, n.Value))
	if err != nil { // the value may be a secret: it is not repeated
		d.reject(n, path, "must be base64 (plain text goes into stringData of a Secret): %v", err)
		return
	}
	v.SetBytes(b)
}

func dropSpace(r rune) rune {
	if r == '\n' || r == '\r' || r == ' ' {
		return -1
	}
	return r
}

// longExponent finds quantities whose exact value would need more memory than
// any machine has; the largest sensible one is 1E, that is 1e18.
var longExponent = regexp.MustCompile(`[eE][+-]?0*[0-9]{3,}$`)

func (d *decoder) decodeCustom(n *yaml.Node, u json.Unmarshaler, path *field.Path, depth int) {
	_, isQuantity := u.(*resource.Quantity)
	if isQuantity && (n.Kind != yaml.ScalarNode || len(n.Value) > 64 || longExponent.MatchString(n.Value)) {
		d.reject(n, path, "must be a quantity such as 250m, 1.5 or 64Mi, not %s", d.describe(n))
		return
	}
	b, err := json.Marshal(d.plain(n, path, depth))
	if err == nil {
		err = u.UnmarshalJSON(b)
	}
	switch {
	case err == nil:
	case isQuantity:
		d.reject(n, path, "must be a quantity such as 250m, 1.5 or 64Mi, not %s", d.describe(n))
	default:
		d.reject(n, path, "not understood: %v", err)
	}
}

// plain turns a node into what encoding/json would make of it.
func (d *decoder) plain(n *yaml.Node, path *field.Path, depth int) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for _, p := range d.pairs(n, path, depth) {
			if v := d.visit(p.value, path, depth+1); v != nil {
				m[p.key.Value] = d.plain(v, path.Key(p.key.Value), depth+1)
			}
		}
		return m
	case yaml.SequenceNode:
		s := make([]any, 0, len(n.Content))
		for i, item := range n.Content {
			if v := d.visit(item, path, depth+1); v != nil {
				s = append(s, d.plain(v, path.Index(i), depth+1))
			}
		}
		return s
	}
	switch scalarTag(n) {
	case "!!bool":
		return boolValue(n.Value)
	case "!!int":
		var i int64
		if n.Decode(&i) == nil {
			return i
		}
	case "!!float":
		return json.Number(n.Value)
	case "!!null":
		return nil
	}
	return n.Value
}

type pair struct{ key, value *yaml.Node }

// pairs returns what a mapping holds: merge keys (<<) are followed, as YAML
// 1.1 and kubectl do, and duplicate or odd keys are rejected.
func (d *decoder) pairs(n *yaml.Node, path *field.Path, depth int) []pair {
	seen := make(map[string]int, len(n.Content)/2)
	out := make([]pair, 0, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
			merges = append(merges, value)
			continue
		}
		if !isKey(key) {
			d.reject(n.Content[i], path, "a key must be a string, not %s; put it in quotes", d.describe(key))
			continue
		}
		if line, dup := seen[key.Value]; dup {
			d.reject(n.Content[i], path.Child(key.Value), "duplicate key, first set on line %d", line)
			continue
		}
		seen[key.Value] = n.Content[i].Line
		out = append(out, pair{n.Content[i], value})
		if key != n.Content[i] {
			out[len(out)-1].key = key
		}
	}
	for _, m := range merges {
		for _, p := range d.merged(m, path, depth+1) {
			if _, ok := seen[p.key.Value]; !ok {
				seen[p.key.Value] = p.key.Line
				out = append(out, p)
			}
		}
	}
	return out
}

// isKey accepts strings and, as kubectl does, whole numbers written the usual way.
func isKey(n *yaml.Node) bool {
	switch scalarTag(n) {
	case "!!str":
		return n.Kind == yaml.ScalarNode
	case "!!int":
		i, err := strconv.ParseInt(n.Value, 10, 64)
		return err == nil && strconv.FormatInt(i, 10) == n.Value
	}
	return false
}

func (d *decoder) merged(m *yaml.Node, path *field.Path, depth int) []pair {
	n := d.visit(m, path, depth)
	switch {
	case n == nil:
		return nil
	case n.Kind == yaml.MappingNode:
		out := d.pairs(n, path, depth)
		d.nodes += len(out)
		return out
	case n.Kind == yaml.SequenceNode:
		var out []pair
		for _, item := range n.Content {
			out = append(out, d.merged(item, path, depth+1)...)
		}
		return out
	}
	d.reject(m, path, "only a mapping can be merged with <<, not %s", d.describe(n))
	return nil
}

// fieldsOf maps the JSON names of a struct's fields to their index, inlined structs included.
func (d *decoder) fieldsOf(t reflect.Type) map[string][]int {
	if f, ok := d.fields[t]; ok {
		return f
	}
	out := map[string][]int{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && (f.Anonymous || strings.Contains(opts, "inline")):
			for inner, index := range d.fieldsOf(f.Type) {
				out[inner] = append([]int{i}, index...)
			}
		case name != "":
			out[name] = []int{i}
		}
	}
	d.fields[t] = out
	return out
}

// scalarTag is the type of a scalar as kubectl sees it: YAML 1.2 apart from
// the YAML 1.1 booleans (yes, no, on, off), which kubectl still knows.
func scalarTag(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return n.ShortTag()
	}
	tag := n.ShortTag()
	if tag == "!!str" && n.Style&(yaml.TaggedStyle|yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
		switch strings.ToLower(n.Value) {
		case "y", "yes", "on", "n", "no", "off":
			if n.Value == strings.ToLower(n.Value) || n.Value == strings.ToUpper(n.Value) || n.Value == strings.ToUpper(n.Value[:1])+strings.ToLower(n.Value[1:]) {
				return "!!bool"
			}
		}
	}
	if tag == "!!timestamp" {
		return "!!str"
	}
	return tag
}

func boolValue(s string) bool {
	switch strings.ToLower(s) {
	case "true", "y", "yes", "on":
		return true
	}
	return false
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func (d *decoder) describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	value := n.Value
	if d.secret {
		value = "(not shown)"
	} else if len(value) > 40 {
		value = value[:40] + "..."
	}
	switch scalarTag(n) {
	case "!!str":
		return "the string " + strconv.Quote(value)
	case "!!int", "!!float":
		return "the number " + value
	case "!!bool":
		return "the boolean " + value
	case "!!null":
		return "null"
	}
	return fmt.Sprintf("%s %q", n.ShortTag(), value)
}
