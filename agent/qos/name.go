package qos

import (
	"fmt"
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Driver says who makes cgroups. It has to be the one that the runtime uses.
type Driver string

// The drivers of KubeletConfiguration.cgroupDriver.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

const (
	podsLevel   = "kubepods"
	podPrefix   = "pod"
	sliceSuffix = ".slice"
)

// node is a place in the tree, one element a level, free of the driver's
// notation: for example [kubepods burstable podUID].
type node []string

// child never shares memory with its siblings.
func (n node) child(name string) node {
	return append(n[:len(n):len(n)], name)
}

// path is the node's absolute path below a hierarchy's mount point.
func (n node) path(driver Driver) string {
	if driver == Cgroupfs {
		return "/" + path.Join(n...)
	}
	var expanded, prefix string
	for _, level := range n {
		prefix += strings.ReplaceAll(level, "-", "_")
		expanded += "/" + prefix + sliceSuffix
		prefix += "-"
	}
	return expanded
}

// parseRoot splits the path of the cgroup under which the tree hangs.
func parseRoot(root string) (node, error) {
	var n node
	for _, level := range strings.Split(strings.Trim(root, "/"), "/") {
		if level == "" && len(n) == 0 {
			continue // the root itself
		}
		if err := checkLevel(level); err != nil {
			return nil, fmt.Errorf("cgroup root %q: %w", root, err)
		}
		n = n.child(level)
	}
	return n, nil
}

// checkLevel keeps names that are unambiguous with both drivers. An underscore
// is refused because the systemd driver writes a dash as one.
func checkLevel(level string) error {
	if level == "" || level == "." || level == ".." || strings.ContainsAny(level, "/_\x00\n") {
		return fmt.Errorf("%q cannot be part of a cgroup name: it must not be empty, \".\" or \"..\" nor contain \"/\" or \"_\"", level)
	}
	return nil
}

// classNode is the parent of a class's pods.
func classNode(pods node, class v1.PodQOSClass) node {
	if class == v1.PodQOSGuaranteed {
		return pods
	}
	return pods.child(strings.ToLower(string(class)))
}

// podUID reads back the UID from the last element of a pod cgroup's path.
func podUID(driver Driver, parent node, name string) (uid string, found bool) {
	if driver == Systemd {
		prefix := strings.TrimSuffix(path.Base(parent.path(Systemd)), sliceSuffix) + "-"
		inner, isSlice := strings.CutSuffix(name, sliceSuffix)
		inner, isChild := strings.CutPrefix(inner, prefix)
		if !isSlice || !isChild {
			return "", false
		}
		name = strings.ReplaceAll(inner, "_", "-")
	}
	uid, found = strings.CutPrefix(name, podPrefix)
	return uid, found && uid != ""
}
