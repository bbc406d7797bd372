// Package volume gives pods their volumes. It owns every mount and directory
// below KUBELET/pods/UID/volumes and KUBELET/pods/UID/volume-subpaths, in the
// kubelet's layout:
//
//	pods/UID/volumes/kubernetes.io~KIND/NAME                  one volume
//	pods/UID/volume-subpaths/NAME/CONTAINER/INDEX             a pinned subPath
//	pods/UID/berth-mounts/ESCAPED-PATH                        the journal: one file for each mount
//
// A mount is journalled before it is made, and its entry is removed only after
// the unmount was verified, so a restarted daemon finds every mount. Mounts do
// not outlive the kernel, so the journal is not synced to disk. Removing a
// directory never crosses into a mounted file system: what is mounted and not
// in the journal is somebody else's, and is reported instead.
//
// A hostPath is handed on as it is. A PersistentVolumeClaim is bound to a
// directory of this host; as the kubelet does for local volumes, that directory
// is bind mounted at kubernetes.io~local-volume/NAME and given the pod's
// fsGroup. What has a Secret or a token in it is kept in a tmpfs; configMap,
// downwardAPI and other projected volumes are on disk, which costs no mount. (The kubelet has
// downwardAPI and all projected volumes in a tmpfs.)
//
//	kind.go                                 from the pod's spec to a kind
//	emptydir.go hostpath.go claim.go        volumes that a pod writes
//	keyed.go projected.go payload.go        volumes written here and replaced as a whole
//	nested.go ownership.go                  mount points in those; fsGroup
//	subpath.go read.go                      subPaths; files of variables
//	mount.go journal.go remove.go teardown.go   what is mounted, and its removal
//	lock.go                                 one call for a pod at a time
//
// # Adding a kind
//
// A kind of volume is one file with one type that implements the interface
// kind, and one line in kindOf. Its setUp is level driven: it is called for
// every sync of the pod, makes what is missing and refreshes what is old.
// Whatever it mounts goes through mounts.make, which journals it; tear-down then
// needs no code of the kind's own. A kind that must tell somebody before the
// unmount (CSI's NodeUnpublishVolume) gets a hook in Manager.tearDown, found by
// the name of the directory, because after a crash the pod's spec is unknown.
package volume
