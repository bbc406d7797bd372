package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// MaxFileSize in bytes: an API server takes no larger request (3 MiB) either.
	MaxFileSize = 3 << 20
	// maxPods bounds what the replicas and completions of one file add up to.
	maxPods = 1000
	// maxRejections bounds what is reported of one file.
	maxRejections = 50
)

const supportedKinds = "v1 Pod, ConfigMap, Secret, PersistentVolumeClaim, Service, Namespace, List; " +
	"apps/v1 Deployment, ReplicaSet, DaemonSet; batch/v1 Job"

// Parse reads the documents of one file. It is all or nothing: when any
// document is not acceptable the Set is empty and the Rejections, ordered by
// line, say why, so that a file is never half applied.
//
// The file's name takes part in the UIDs of its pods (see identity.go): it
// should be the name below the manifest directory, not a path that depends on
// where that directory is mounted.
func Parse(file string, data []byte, opts Options) (Set, []Rejection) {
	p := &parser{file: file, opts: opts, set: newSet(), dec: newDecoder(file), seen: map[string]int{}}
	if len(data) > MaxFileSize {
		return newSet(), []Rejection{{File: file, Reason: fmt.Sprintf("larger than %d MiB: split it into several files", MaxFileSize>>20)}}
	}
	if looksLikeJSON(data) {
		data = fromJSON(data)
	}
	for _, doc := range p.documents(data) {
		p.document(doc)
	}
	if len(p.rejections) > 0 {
		return newSet(), limit(p.rejections, p.unlisted)
	}
	slices.SortFunc(p.set.Pods, comparePods)
	return p.set, nil
}

func comparePods(a, b *v1.Pod) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// limit sorts rejections and cuts the list, saying so.
func limit(all []Rejection, unlisted int) []Rejection {
	slices.SortStableFunc(all, func(a, b Rejection) int { return a.Line - b.Line })
	if len(all) > maxRejections {
		more := Rejection{File: all[0].File, Reason: fmt.Sprintf("and %d more problems", len(all)-maxRejections+unlisted)}
		all = append(all[:maxRejections:maxRejections], more)
	}
	return all
}

// parser collects what one file asks for.
type parser struct {
	file       string
	opts       Options
	dec        *decoder
	set        Set
	rejections []Rejection
	unlisted   int            // further problems, beyond what is reported
	seen       map[string]int // "kind namespace/name" -> line, to find duplicates
	pods       int            // asked for so far, replicas included
}

// document is one object of a file.
type document struct {
	node *yaml.Node
	base *field.Path // nil, or items[i] in a List
}

func (p *parser) rejectAt(line int, path *field.Path, format string, args ...any) {
	r := Rejection{File: p.file, Line: line, Reason: fmt.Sprintf(format, args...)}
	if path != nil {
		r.Field = path.String()
	}
	p.rejections = append(p.rejections, r)
}

// rejectAll turns validation errors, whose paths start at the document, into Rejections.
func (p *parser) rejectAll(doc document, errs field.ErrorList) {
	for _, e := range errs {
		if len(p.rejections) >= 2*maxRejections { // finding the line of each costs
			p.unlisted++
			continue
		}
		path := e.Field
		line := lineOf(doc.node, path)
		if doc.base != nil {
			path = doc.base.String() + "." + path
		}
		p.rejections = append(p.rejections, Rejection{File: p.file, Line: line, Field: path, Reason: e.ErrorBody()})
	}
}

// yamlLine is how the YAML package says where a syntax error is.
var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s+)?(?:line (\d+): )?`)

func (p *parser) documents(data []byte) []document {
	if line := invalidUTF8(data); line > 0 {
		p.rejectAt(line, nil, "not valid UTF-8")
		return nil
	}
	var out []document
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var root yaml.Node
		err := dec.Decode(&root)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			m := yamlLine.FindStringSubmatch(err.Error())
			line := 0
			if m != nil {
				line, _ = strconv.Atoi(m[1])
			}
			p.rejectAt(line, nil, "not valid YAML: %s", yamlLine.ReplaceAllString(err.Error(), ""))
			return nil
		}
		if len(root.Content) == 1 && !isNull(root.Content[0]) {
			out = append(out, document{node: root.Content[0]})
		}
	}
}

// kindOf reads apiVersion and kind, which decide what all else means.
func (p *parser) kindOf(doc document) (apiVersion, kind string, ok bool) {
	if doc.node.Kind == yaml.AliasNode {
		doc.node = doc.node.Alias
	}
	if doc.node.Kind != yaml.MappingNode {
		p.rejectAt(doc.node.Line, doc.base, "must be a Kubernetes object with apiVersion and kind")
		return "", "", false
	}
	for i := 0; i+1 < len(doc.node.Content); i += 2 {
		switch doc.node.Content[i].Value {
		case "apiVersion":
			apiVersion = doc.node.Content[i+1].Value
		case "kind":
			kind = doc.node.Content[i+1].Value
		}
	}
	if apiVersion == "" || kind == "" {
		p.rejectAt(doc.node.Line, doc.base, "apiVersion and kind are required (supported: %s)", supportedKinds)
		return "", "", false
	}
	return apiVersion, kind, true
}

func (p *parser) document(doc document) {
	apiVersion, kind, ok := p.kindOf(doc)
	if !ok {
		return
	}
	switch apiVersion + " " + kind {
	case "v1 Pod":
		decodeThen(p, doc, p.pod)
	case "v1 ConfigMap":
		decodeThen(p, doc, p.configMap)
	case "v1 Secret":
		decodeThen(p, doc, p.secret)
	case "v1 PersistentVolumeClaim":
		decodeThen(p, doc, p.claim)
	case "v1 Service":
		decodeThen(p, doc, p.service)
	case "v1 Namespace":
		// Namespaces are only a prefix of names here; nothing has to be made.
		decodeThen(p, doc, func(document, *v1.Namespace) {})
	case "apps/v1 Deployment":
		decodeThen(p, doc, p.deployment)
	case "apps/v1 ReplicaSet":
		decodeThen(p, doc, p.replicaSet)
	case "apps/v1 DaemonSet":
		decodeThen(p, doc, p.daemonSet)
	case "batch/v1 Job":
		decodeThen(p, doc, p.job)
	case "v1 List":
		p.list(doc)
	default:
		p.rejectAt(doc.node.Line, doc.base.Child("kind"), "%s %s is not supported (supported: %s)", apiVersion, kind, supportedKinds)
	}
}

func (p *parser) list(doc document) {
	if doc.base != nil {
		p.rejectAt(doc.node.Line, doc.base, "a List cannot hold another List")
		return
	}
	d := p.dec
	defer p.takeErrors()
	for _, pair := range d.pairs(doc.node, nil, 0) {
		switch pair.key.Value {
		case "apiVersion", "kind", "metadata":
		case "items":
			if pair.value.Kind != yaml.SequenceNode {
				d.reject(pair.value, field.NewPath("items"), "must be a list, not %s", d.describe(pair.value))
				continue
			}
			for i, item := range pair.value.Content {
				if item.Kind == yaml.AliasNode {
					item = item.Alias
				}
				p.document(document{node: item, base: field.NewPath("items").Index(i)})
			}
		default:
			d.reject(pair.key, field.NewPath(pair.key.Value), "unknown field")
		}
	}
}

// decodeThen decodes a document strictly and hands it on when that went well.
func decodeThen[T any](p *parser, doc document, next func(document, *T)) {
	obj := new(T)
	_, p.dec.secret = any(obj).(*v1.Secret)
	p.dec.decode(doc.node, reflect.ValueOf(obj).Elem(), doc.base, 0)
	if p.takeErrors() == 0 && !p.dec.exhausted {
		next(doc, obj)
	}
}

// takeErrors moves the decoder's errors to the file's and says how many there were.
func (p *parser) takeErrors() int {
	n := len(p.dec.errs)
	p.rejections = append(p.rejections, p.dec.errs...)
	p.dec.errs = nil
	return n
}

// claimName notes that a document defines an object; false when the file has it already.
func (p *parser) claimName(doc document, kind string, key Key) bool {
	id := kind + " " + key.String()
	if line, dup := p.seen[id]; dup {
		p.rejectAt(doc.node.Line, doc.base.Child("metadata", "name"), "%s %s is already defined on line %d", kind, key, line)
		return false
	}
	p.seen[id] = doc.node.Line
	return true
}

func (p *parser) pod(doc document, pod *v1.Pod) {
	p.addPod(doc, pod, podPaths{meta: field.NewPath("metadata"), spec: field.NewPath("spec")})
}

func (p *parser) deployment(doc document, d *appsv1.Deployment) {
	p.expand(doc, fromDeployment(d))
}

func (p *parser) replicaSet(doc document, r *appsv1.ReplicaSet) {
	p.expand(doc, fromReplicaSet(r))
}

func (p *parser) daemonSet(doc document, d *appsv1.DaemonSet) {
	p.expand(doc, fromDaemonSet(d))
}

func (p *parser) job(doc document, j *batchv1.Job) {
	w, errs := fromJob(j)
	p.rejectAll(doc, errs)
	p.expand(doc, w)
}

func looksLikeJSON(data []byte) bool {
	data = bytes.TrimLeft(data, " \t\r\n")
	return len(data) > 0 && data[0] == '{'
}

// fromJSON rewrites the two escapes of JSON strings that YAML does not know:
// \/ and the surrogate pairs \uD83D\uDE00. Lines stay where they are.
func fromJSON(data []byte) []byte {
	if !bytes.Contains(data, []byte(`\u`)) && !bytes.Contains(data, []byte(`\/`)) {
		return data
	}
	out := make([]byte, 0, len(data))
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\\')
		if i < 0 || i+1 == len(data) {
			return append(out, data...)
		}
		out = append(out, data[:i]...)
		data = data[i:]
		if data[1] == '/' {
			out, data = append(out, '/'), data[2:]
			continue
		}
		if r := surrogatePair(data); r != utf8.RuneError {
			out, data = utf8.AppendRune(out, r), data[12:]
			continue
		}
		out, data = append(out, data[:2]...), data[2:]
	}
	return out
}

// surrogatePair decodes \uXXXX\uXXXX at the start of b; utf8.RuneError when there is none.
func surrogatePair(b []byte) rune {
	if len(b) < 12 || b[1] != 'u' {
		return utf8.RuneError
	}
	high, ok := unicodeEscape(b)
	if !ok {
		return utf8.RuneError
	}
	low, ok := unicodeEscape(b[6:])
	if !ok {
		return utf8.RuneError
	}
	return utf16.DecodeRune(high, low)
}

func unicodeEscape(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

// invalidUTF8 returns the line of the first byte that is not UTF-8, or 0.
func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return 0
	}
	line := 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if r == utf8.RuneError && size == 1 {
			break
		}
		if r == '\n' {
			line++
		}
		data = data[size:]
	}
	return line
}
