package volume

import (
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func field(path string) *v1.ObjectFieldSelector { return &v1.ObjectFieldSelector{FieldPath: path} }

func aboutMe() (Pod, []v1.DownwardAPIVolumeFile) {
	pod := newPod()
	pod.Labels = map[string]string{"app": "web", "a/b": "2"}
	pod.Annotations = map[string]string{"Note": "two\nlines"}
	pod.HostIPs, pod.PodIPs = []string{"192.0.2.1"}, []string{"10.0.0.2", "fd00::2"}
	pod.Spec.NodeName, pod.Spec.ServiceAccountName = "node-1", "robot"
	pod.Allocatable = v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")}
	pod.Spec.Containers = []v1.Container{{Name: "main", Resources: v1.ResourceRequirements{
		Limits: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1500m")},
	}}}
	return pod, []v1.DownwardAPIVolumeFile{
		{Path: "name", FieldRef: field("metadata.name")},
		{Path: "labels", FieldRef: field("metadata.labels")},
		{Path: "annotations", FieldRef: field("metadata.annotations")},
		{Path: "label", FieldRef: field("metadata.labels['a/b']")},
		{Path: "sub/node", FieldRef: field("spec.nodeName"), Mode: ptr[int32](0o400)},
		{Path: "account", FieldRef: field("spec.serviceAccountName")},
		{Path: "host", FieldRef: field("status.hostIP")},
		{Path: "ips", FieldRef: field("status.podIPs")},
		{Path: "cpu", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.cpu"}},
		{Path: "millis", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.cpu", Divisor: resource.MustParse("1m")}},
		{Path: "memory", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}},
	}
}

var aboutMeFiles = map[string]string{
	"name": "web", "labels": "a/b=\"2\"\napp=\"web\"", "annotations": `Note="two\nlines"`, "label": "2",
	"sub/node": "node-1", "account": "robot", "host": "192.0.2.1", "ips": "10.0.0.2,fd00::2",
	"cpu": "2", "millis": "1500", "memory": "64",
}

func TestDownwardAPITellsThePodAboutItself(t *testing.T) {
	e := newEnv(t)
	pod, items := aboutMe()
	pod.Spec.Volumes = []v1.Volume{vol("me", v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: items}})}
	got := e.setUp(pod)["me"]
	for name, want := range aboutMeFiles {
		e.wantFile(got.HostPath+"/"+name, want)
	}
	e.wantMode(got.HostPath+"/sub/node", 0o400, 0)
	if !got.ReadOnly {
		t.Error("containers may write it")
	}
	pod.Labels["app"] = "new"
	e.setUp(pod)
	e.wantFile(got.HostPath+"/labels", "a/b=\"2\"\napp=\"new\"")
	e.tearDown(pod)
}

func TestProjectedPutsItsSourcesIntoOneDirectory(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1", "b", "2")
	pod, items := aboutMe()
	web := v1.LocalObjectReference{Name: "web"}
	sources := []v1.VolumeProjection{
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: web, Items: []v1.KeyToPath{{Key: "a", Path: "cm/a", Mode: ptr[int32](0o600)}}}},
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "no"}, Optional: ptr(true)}},
		{DownwardAPI: &v1.DownwardAPIProjection{Items: items}},
	}
	withSecret := append([]v1.VolumeProjection{{Secret: &v1.SecretProjection{LocalObjectReference: web}}}, sources...)
	pod.Spec.Volumes = []v1.Volume{
		vol("plain", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: sources, DefaultMode: ptr[int32](0o444)}}),
		vol("secret", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: withSecret}}),
	}
	mounted := e.setUp(pod)
	for _, v := range mounted {
		for name, want := range aboutMeFiles {
			e.wantFile(v.HostPath+"/"+name, want)
		}
		e.wantFile(v.HostPath+"/cm/a", "1")
		e.wantMode(v.HostPath+"/cm/a", 0o600, 0)
	}
	e.wantMode(mounted["plain"].HostPath+"/name", 0o444, 0)
	e.wantMode(mounted["secret"].HostPath+"/name", 0o644, 0)
	e.wantFile(mounted["secret"].HostPath+"/b", "2")
	var fs unix.Statfs_t
	if err := unix.Statfs(mounted["secret"].HostPath, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Errorf("the secret is on file system type %#x, %v", fs.Type, err)
	}
	if n := len(mountsBelow(t, e.root)); n != 1 {
		t.Errorf("%d mounts, want one for the secret", n)
	}
	e.tearDown(pod)
}

func TestProjectedAndDownwardErrorsNameTheSource(t *testing.T) {
	e := newEnv(t)
	web := v1.LocalObjectReference{Name: "web"}
	for want, source := range map[string]v1.VolumeProjection{
		`configmap "web" not found`:           {ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: web}},
		`secret "web" not found`:              {Secret: &v1.SecretProjection{LocalObjectReference: web}},
		`token "gone" not found`:              {ServiceAccountToken: &v1.ServiceAccountTokenProjection{Audience: "gone", Path: "t"}},
		`clustertrustbundle "gone" not found`: {ClusterTrustBundle: &v1.ClusterTrustBundleProjection{Name: ptr("gone"), Path: "b"}},
		"ClusterTrustBundle projection requires either name or signerName to be set":                                       {ClusterTrustBundle: &v1.ClusterTrustBundleProjection{}},
		"projected podCertificate is not supported (the feature PodCertificateRequest, off by default): leave it out":      {PodCertificate: &v1.PodCertificateProjection{}},
		"projected source of no known kind: use configMap, secret, downwardAPI, serviceAccountToken or clusterTrustBundle": {},
		`downwardAPI item "x": field label not supported: spec.nope`: {DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{
			{Path: "x", FieldRef: field("spec.nope")}}}},
		`downwardAPI item "x": container other not found`: {DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{
			{Path: "x", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "other", Resource: "limits.cpu"}}}}},
		`downwardAPI item "x": has neither fieldRef nor resourceFieldRef`: {DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{{Path: "x"}}}},
		`downwardAPI item "../x": path "../x" must not start with '..'`: {DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{
			{Path: "../x", FieldRef: field("metadata.name")}}}},
	} {
		e.fails(newPod(vol("p", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{source}}})), `volume "p": `+want)
	}
}

// What the API server adds to every pod: the token of its service account, the
// cluster's certificate and its namespace.
func TestTheVolumeOfAServiceAccount(t *testing.T) {
	for _, test := range []struct {
		name         string
		group, user  *int64 // of the pod
		other        *int64 // user of its other container; nil: the same
		mode         uint32
		owner, owned uint32 // user and group of the token
	}{
		{"a pod of no user in particular", nil, nil, nil, 0o644, 0, 0},
		{"a user", nil, ptr[int64](1000), nil, 0o600, 1000, 0},
		{"a group", ptr[int64](4321), nil, nil, 0o640, 0, 4321},
		{"a user and a group", ptr[int64](4321), ptr[int64](1000), nil, 0o640, 1000, 4321},
		{"two users", nil, ptr[int64](1000), ptr[int64](1001), 0o644, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEnv(t)
			e.objects.tokens[""] = "first"
			e.objects.configMaps["kube-root-ca.crt"] = &v1.ConfigMap{Data: map[string]string{"ca.crt": "CA"}}
			e.objects.bundles["b"] = "PEM"
			pod := newPod(vol("kube-api-access-x", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{DefaultMode: ptr[int32](0o644), Sources: []v1.VolumeProjection{
				{ServiceAccountToken: &v1.ServiceAccountTokenProjection{ExpirationSeconds: ptr[int64](3607), Path: "token"}},
				{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []v1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
				{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: field("metadata.namespace")}}}},
				{ClusterTrustBundle: &v1.ClusterTrustBundleProjection{Name: ptr("b"), Path: "bundle"}},
				{ClusterTrustBundle: &v1.ClusterTrustBundleProjection{Name: ptr("gone"), Path: "none", Optional: ptr(true)}},
			}}}))
			pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: test.group, RunAsUser: test.user}
			pod.Spec.Containers = []v1.Container{{Name: "a"}, {Name: "b"}}
			if test.other != nil {
				pod.Spec.Containers[1].SecurityContext = &v1.SecurityContext{RunAsUser: test.other}
			}
			dir := e.setUp(pod)["kube-api-access-x"].HostPath
			for name, want := range map[string]string{"token": "first", "ca.crt": "CA", "namespace": "default", "bundle": "PEM", "none": ""} {
				e.wantFile(dir+"/"+name, want)
			}
			for _, name := range []string{"token", "bundle", "none"} {
				e.wantMode(dir+"/"+name, test.mode, test.owned)
				var st unix.Stat_t
				if err := unix.Stat(dir+"/"+name, &st); err != nil || st.Uid != test.owner {
					t.Errorf("%s belongs to %d, %v; want %d", name, st.Uid, err, test.owner)
				}
			}
			e.wantMode(dir+"/ca.crt", 0o644, test.owned)
			var fs unix.Statfs_t
			if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
				t.Errorf("the token is on file system type %#x, %v", fs.Type, err)
			}
			e.objects.tokens[""] = "second"
			e.setUp(pod)
			e.wantFile(dir+"/token", "second")
			e.tearDown(pod)
		})
	}
}
