package images

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// E2E has an image for every reference that the specs of Kubernetes' e2e suite
// (v1.36, test/utils/image/manifest.go) name for a Linux node without special
// hardware, but for those of volume servers, CSI drivers and benchmarks. Of the CSI
// driver hostpathplugin there is the proxy that tests of drivers use.
func (b *Builder) E2E() (map[string]v1.Image, error) {
	tools, err := b.e2eTools()
	if err != nil {
		return nil, err
	}
	out := map[string]v1.Image{}
	for _, add := range []func(map[string]v1.Image, v1.Layer) error{
		b.addServers, b.addBusyboxes, b.addPause, b.addAgnhost, b.addPets, b.addPrograms, b.addAPIServer, b.addProxy,
	} {
		if err := add(out, tools); err != nil {
			return nil, err
		}
	}
	out[e2eImages+"nginx:1.15-4"] = out[e2eImages+"nginx:1.14-2"]
	if out[e2eImages+"nginx:1.27-0"], err = relabel(out[e2eImages+"nginx:1.14-2"], "1.27-0"); err != nil {
		return nil, err
	}
	return out, nil
}

// e2eTools is Debian's busybox with the shell of sh/sh.c: the one with shared
// libraries, since the static one's shell would run its own nc, and its wget
// cannot look up names.
func (b *Builder) e2eTools() (v1.Layer, error) {
	t := newTree()
	if err := b.sharedBusybox(t); err != nil {
		return nil, err
	}
	if err := t.host("bin/sh", filepath.Join(b.Bin, "sh")); err != nil {
		return nil, fmt.Errorf("%w (made by: make testbins)", err)
	}
	return b.toolsOf(t)
}

// addBusyboxes adds busybox and those images that are little more.
func (b *Builder) addBusyboxes(out map[string]v1.Image, tools v1.Layer) (err error) {
	for reference, user := range map[string]string{
		"busybox:1.37.0-1": "",
		"busybox:1.36.1-1": "",
		"busybox:1.29-2":   "",
		"nonroot:1.5":      "1234",
		"ipc-utils:1.4":    "",
	} {
		if out[e2eImages+reference], err = assemble(v1.Config{
			Cmd: []string{"sh"}, Env: []string{"PATH=" + Path}, User: user, Labels: map[string]string{"name": reference},
		}, tools); err != nil {
			return err
		}
	}
	return nil
}

// agnhostPrograms are what specs run in agnhost, which is no part of busybox or
// does more there.
var agnhostPrograms = []string{"bash", "curl", "dig", "getent", "host", "ip", "iperf", "nsenter", "nslookup", "ss"}

// addAgnhost adds the image that most specs use, and the one for DNS that has
// the same tools with glibc.
func (b *Builder) addAgnhost(out map[string]v1.Image, tools v1.Layer) error {
	t := newTree()
	for _, program := range agnhostPrograms {
		if err := b.program(t, program); err != nil {
			return err
		}
	}
	if err := b.programAs(t, "usr/bin/nc", "nc.openbsd"); err != nil {
		return err
	}
	t.symlink("usr/local/bin/iperf", "/usr/bin/iperf")
	t.symlink("bin/bash", "/usr/bin/bash")
	t.file("etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	network, err := t.layer()
	if err != nil {
		return err
	}
	out[e2eImages+"glibc-dns-testing:2.0.0"], err = assemble(v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=" + Path}}, tools, network)
	if err != nil {
		return err
	}
	programs := newTree()
	for _, name := range []string{"agnhost", "coredns", "localhost.crt", "localhost.key"} {
		if err := programs.host(name, filepath.Join(b.Peers, name)); err != nil {
			return fmt.Errorf("%w (made by: make e2e-images)", err)
		}
	}
	programs.symlink("agnhost-2", "agnhost")
	programs.dir("uploads", 0o755)
	// Of a spec about the groups that an image gives its user.
	users(programs, "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n",
		"user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")
	if err := fakeRegistry(programs, out["registry.k8s.io/pause:3.10.2"]); err != nil {
		return err
	}
	agnhost, err := programs.layer()
	if err != nil {
		return err
	}
	for _, version := range []string{"2.63.0", "2.55"} {
		if out[e2eImages+"agnhost:"+version], err = assemble(v1.Config{
			Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: []string{"PATH=" + Path}, Labels: map[string]string{"version": version},
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "8080/tcp": {}, "8081/tcp": {}, "9376/tcp": {}, "5000/tcp": {}},
		}, tools, network, agnhost); err != nil {
			return err
		}
	}
	return nil
}

// fakeRegistry adds the image that agnhost's own registry serves, as
// pause:testing, in the layout that it reads.
func fakeRegistry(t *tree, img v1.Image) error {
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}},
	})
	indexData, err := index.RawManifest()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	const dir = "var/registry/pause/"
	add := func(kind string, data []byte) string {
		hash := fmt.Sprintf("%x", sha256.Sum256(data))
		t.file(dir+kind+"/sha256/"+hash[:2]+"/"+hash+"/data", 0o644, data)
		return "sha256:" + hash
	}
	t.file(dir+"manifests/testing", 0o644, []byte(add("manifests", indexData)+"\n"))
	add("manifests", manifest)
	add("blobs", config)
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		data, err := compressed(l)
		if err != nil {
			return err
		}
		add("blobs", data)
	}
	return nil
}

// addPets adds the two web servers that differ in a name.
func (b *Builder) addPets(out map[string]v1.Image, tools v1.Layer) error {
	for _, pet := range []string{"kitten", "nautilus"} {
		t := newTree()
		if err := t.host("agnhost", filepath.Join(b.Peers, "agnhost")); err != nil {
			return fmt.Errorf("%w (made by: make e2e)", err)
		}
		t.file("data.json", 0o644, fmt.Appendf(nil, "{\"image\": \"%s.jpg\"}\n", pet))
		// A spec that mounts the image reads the name of what it stands for.
		t.file("etc/os-release", 0o644, []byte("NAME=\"Alpine Linux\"\n"))
		layer, err := t.layer()
		if err != nil {
			return err
		}
		if out[e2eImages+pet+":1.8"], err = assemble(v1.Config{
			Entrypoint: []string{"/agnhost"}, Cmd: []string{"test-webserver"}, Env: []string{"PATH=" + Path},
		}, tools, layer); err != nil {
			return err
		}
	}
	return nil
}

// addPrograms adds images of one program each.
func (b *Builder) addPrograms(out map[string]v1.Image, tools v1.Layer) error {
	nnp, err := os.ReadFile(filepath.Join(b.Peers, "nonewprivs"))
	if err != nil {
		return fmt.Errorf("%w (made by: make e2e)", err)
	}
	t := newTree()
	t.file("usr/local/bin/nnp", 0o4755, nnp)
	layer, err := t.layer()
	if err != nil {
		return err
	}
	for _, version := range []string{"1.3", "1.4"} {
		if out[e2eImages+"nonewprivs:"+version], err = assemble(v1.Config{Cmd: []string{"/usr/local/bin/nnp"}}, layer); err != nil {
			return err
		}
	}
	layer, err = b.peerLayer("regression-issue-74839", "regression-issue-74839")
	if err != nil {
		return err
	}
	out[e2eImages+"regression-issue-74839:1.4"], err = assemble(v1.Config{Entrypoint: []string{"/regression-issue-74839"}}, tools, layer)
	return err
}

// addProxy adds the program by which drivers in the suite's process are reached.
func (b *Builder) addProxy(out map[string]v1.Image, tools v1.Layer) error {
	t := newTree()
	if err := t.host("hostpathplugin", filepath.Join(b.Bin, "hostpathplugin")); err != nil {
		return fmt.Errorf("%w (made by: make testbins)", err)
	}
	layer, err := t.layer()
	if err != nil {
		return err
	}
	out["registry.k8s.io/sig-storage/hostpathplugin:v1.17.1"], err = assemble(v1.Config{
		Entrypoint: []string{"/hostpathplugin"}, Env: []string{"PATH=" + Path}}, tools, layer)
	return err
}

// addAPIServer adds the aggregated API server and its etcd.
func (b *Builder) addAPIServer(out map[string]v1.Image, tools v1.Layer) error {
	server, err := b.peerLayer("sample-apiserver", "sample-apiserver")
	if err != nil {
		return err
	}
	out[e2eImages+"sample-apiserver:1.29.2"], err = assemble(v1.Config{Entrypoint: []string{"/sample-apiserver"}}, server)
	if err != nil {
		return err
	}
	etcd, err := b.peerLayer("usr/local/bin/etcd", "etcd")
	if err != nil {
		return err
	}
	out["registry.k8s.io/etcd:3.6.8-0"], err = assemble(v1.Config{Cmd: []string{"etcd"}, Env: []string{"PATH=" + Path}}, tools, etcd)
	return err
}

func relabel(img v1.Image, version string) (v1.Image, error) {
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := *file.Config.DeepCopy()
	config.Labels = map[string]string{"version": version}
	return mutate.Config(img, config)
}

// WriteLayout writes images into a new directory in OCI layout, each with its
// reference. The directory is there when it is whole.
func WriteLayout(dir string, all map[string]v1.Image) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	path, err := layout.Write(tmp, empty.Index)
	if err != nil {
		return err
	}
	for _, reference := range slices.Sorted(maps.Keys(all)) {
		options := layout.WithAnnotations(map[string]string{ReferenceAnnotation: reference})
		if err := path.AppendImage(all[reference], options); err != nil {
			return fmt.Errorf("write image %s: %w", reference, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}
