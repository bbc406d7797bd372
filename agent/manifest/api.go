// Package manifest turns manifest files into desired pods and the objects they
// use. It is pure: bytes in, a Set or a list of Rejections out; reading and
// watching files is agent/source's.
//
//	decode.go    documents of a file, strict, with line numbers
//	defaults.go  what an API server would fill in
//	validate.go  what an API server would refuse
//	expand.go    Deployment, DaemonSet, Job -> Pods of one node
package manifest

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// Key names a namespaced object.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Claim is a PersistentVolumeClaim bound to a directory of this host.
type Claim struct {
	HostPath string
	ReadOnly bool
}

// Set is everything one file, or all files together, ask for.
type Set struct {
	Pods       []*v1.Pod // defaulted, expanded; UID derived from file and content; sorted by namespace and name
	ConfigMaps map[Key]*v1.ConfigMap
	Secrets    map[Key]*v1.Secret
	Claims     map[Key]Claim
	Services   map[Key]*v1.Service
}

// Rejection says why a document was not accepted.
type Rejection struct {
	File   string
	Line   int    // first line of the document or of the offending node; 0 when unknown
	Field  string // field path, for example spec.containers[0].image; empty for syntax errors
	Reason string
}

func (r Rejection) Error() string {
	where := r.File
	if r.Line > 0 {
		where = fmt.Sprintf("%s:%d", where, r.Line)
	}
	if r.Field != "" {
		return fmt.Sprintf("%s: %s: %s", where, r.Field, r.Reason)
	}
	return fmt.Sprintf("%s: %s", where, r.Reason)
}
