// Package manifest turns manifest files into desired pods and the objects they
// use. It is pure: bytes in, a Set or a list of Rejections out; reading and
// watching files is agent/source's.
//
//	parse.go      a file: its documents, one after the other, all or nothing
//	decode.go     a document into a Kubernetes type, strict, with line numbers
//	objects.go    ConfigMap, Secret, PersistentVolumeClaim, Service
//	expand.go     Deployment, ReplicaSet, DaemonSet, Job -> Pods of one node
//	identity.go   UID and the annotations every pod from a file gets
//	defaults.go   what an API server would fill in
//	validate*.go  what an API server would refuse
//	merge.go      all files together
package manifest

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Annotations that manifests use or that pods from manifests carry.
const (
	// AnnotationHostPath on a PersistentVolumeClaim names the host directory it is bound to.
	AnnotationHostPath = "berth.io/host-path"
	// AnnotationOwner on a pod says what it was expanded from, for example Deployment/web.
	AnnotationOwner = "berth.io/owner"
	// AnnotationManifest on a pod is the name of the file it came from.
	AnnotationManifest = "berth.io/manifest"
	// AnnotationBackoffLimit on a pod of a Job is the Job's backoffLimit.
	AnnotationBackoffLimit = "berth.io/backoff-limit"

	// The kubelet's, for pods that do not come from an API server.
	AnnotationConfigHash   = "kubernetes.io/config.hash"
	AnnotationConfigSource = "kubernetes.io/config.source"
	AnnotationConfigSeen   = "kubernetes.io/config.seen"
	// AnnotationConfigMirror is on a mirror pod: the config.hash of its static pod.
	AnnotationConfigMirror = "kubernetes.io/config.mirror"
)

// Values of AnnotationConfigSource.
const (
	SourceFile = "file"
	SourceAPI  = "api"
)

// Options are what a node adds to its manifests.
type Options struct {
	NodeName string
	// Now is the pods' creation time: use the time the file was last changed,
	// so that it stays the same over a restart.
	Now time.Time
	// ClaimsDir holds, as NAMESPACE/NAME, the directories of claims without
	// AnnotationHostPath. When empty, such claims are rejected.
	ClaimsDir string
	// NameSuffix is appended to pod names, as the kubelet appends "-NODENAME"
	// to keep the names of static pods apart between nodes.
	NameSuffix string
}

// Key names a namespaced object.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Claim is a PersistentVolumeClaim bound to a directory of this host.
type Claim struct {
	HostPath string
	ReadOnly bool
}

// Set is everything one file, or all files together, ask for. It is immutable
// once returned.
type Set struct {
	Pods       []*v1.Pod // defaulted, expanded; UID derived from file and content; sorted by namespace and name
	ConfigMaps map[Key]*v1.ConfigMap
	Secrets    map[Key]*v1.Secret
	Claims     map[Key]Claim
	Services   map[Key]*v1.Service
}

func newSet() Set {
	return Set{
		ConfigMaps: map[Key]*v1.ConfigMap{},
		Secrets:    map[Key]*v1.Secret{},
		Claims:     map[Key]Claim{},
		Services:   map[Key]*v1.Service{},
	}
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
