package images

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// critest's own images, by the part of their names that is the same.
const (
	e2eImages     = "registry.k8s.io/e2e-test-images/"
	critestImages = "gcr.io/k8s-staging-cri-tools/"
)

// CRITest has an image for every reference that the specs of critest (cri-tools
// v1.36) name, but for the one that names a digest. Those of different names
// have different digests, except where a spec wants them the same.
func (b *Builder) CRITest() (map[string]v1.Image, error) {
	tools, err := b.toolsLayer()
	if err != nil {
		return nil, err
	}
	out := map[string]v1.Image{}
	for reference, user := range map[string]string{
		e2eImages + "busybox:1.29-2":                            "",
		critestImages + "test-image-latest:latest":              "",
		critestImages + "test-image-tag:test":                   "",
		critestImages + "test-image-tag:all":                    "",
		critestImages + "test-image-1:latest":                   "",
		critestImages + "test-image-2:latest":                   "",
		critestImages + "test-image-3:latest":                   "",
		critestImages + "test-image-tags:1":                     "",
		critestImages + "test-image-user-uid:latest":            "1002",
		critestImages + "test-image-user-username:latest":       "www-data",
		critestImages + "test-image-user-uid-group:latest":      "1003:users",
		critestImages + "test-image-user-username-group:latest": "www-data:users",
	} {
		if out[reference], err = assemble(v1.Config{
			Cmd: []string{"sh"}, Env: []string{"PATH=" + Path}, User: user,
			Labels: map[string]string{"name": reference},
		}, tools); err != nil {
			return nil, err
		}
	}
	out[critestImages+"test-image-tags:2"] = out[critestImages+"test-image-tags:1"]
	out[critestImages+"test-image-tags:3"] = out[critestImages+"test-image-tags:1"]
	for _, add := range []func(map[string]v1.Image, v1.Layer) error{b.addServers, b.addGroupImage, b.addPause, b.addNoNewPrivs} {
		if err := add(out, tools); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// toolsLayer is Debian's busybox, the one with shared libraries, and what specs
// call that it lacks.
func (b *Builder) toolsLayer() (v1.Layer, error) {
	t := newTree()
	if err := b.sharedBusybox(t); err != nil {
		return nil, err
	}
	return b.toolsOf(t)
}

// sharedBusybox adds the busybox that is unpacked in Debs.
func (b *Builder) sharedBusybox(t *tree) error {
	for _, dir := range []string{"bin", "usr/bin"} {
		path := filepath.Join(b.Debs, dir, "busybox")
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if err := busyboxTree(t, path); err != nil {
			return err
		}
		return b.libraries(t, path)
	}
	return fmt.Errorf("no busybox below %s (scripts/setup critest unpacks one)", b.Debs)
}

// toolsOf adds what specs call that busybox lacks.
func (b *Builder) toolsOf(t *tree) (v1.Layer, error) {
	for _, program := range []string{"pgrep", "ipcs"} {
		if err := b.program(t, program); err != nil {
			return nil, err
		}
	}
	users(t, "www-data:x:33:33::/var/www:/bin/sh\n", "www-data:x:33:\nusers:x:100:\n")
	return t.layer()
}

// addServers adds the web servers. nginx runs with dash and coreutils around
// it, as in the image it stands for, since a spec greps in a file with NULs.
func (b *Builder) addServers(out map[string]v1.Image, tools v1.Layer) error {
	t := newTree()
	for _, program := range []string{"nginx", "dash", "cat", "chmod", "grep", "ls", "sleep"} {
		if err := b.program(t, program); err != nil {
			return err
		}
	}
	t.hardlink("bin/sh", "usr/bin/dash")
	// GNU grep since 3.5 says on standard error that a file with NULs matches.
	t.file("usr/local/bin/grep", 0o755, []byte("#!/bin/sh\nexec /usr/bin/grep -a \"$@\"\n"))
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "var/log/nginx", "var/lib/nginx", "var/run"} {
		t.dir(dir, 0o755)
	}
	users(t, "", "")
	t.file("usr/share/nginx/html/index.html", 0o644, []byte("<title>Welcome to nginx!</title>\n"))
	nginx, err := t.layer()
	if err != nil {
		return err
	}
	for reference, port := range map[string]int{
		e2eImages + "nginx:1.14-2":                                    80,
		critestImages + "hostnet-nginx-" + runtime.GOARCH + ":latest": 12003,
	} {
		t := newTree()
		t.file("etc/nginx/nginx.conf", 0o644, fmt.Appendf(nil, nginxConfig, port))
		config, err := t.layer()
		if err != nil {
			return err
		}
		if out[reference], err = assemble(v1.Config{
			Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{"PATH=" + Path}, StopSignal: "SIGQUIT",
		}, nginx, config); err != nil {
			return err
		}
	}
	t = newTree()
	t.file("www/index.html", 0o644, []byte("<html><body><h1>It works!</h1></body></html>\n"))
	www, err := t.layer()
	if err != nil {
		return err
	}
	out[e2eImages+"httpd:2.4.39-4"], err = assemble(v1.Config{
		Cmd: []string{"sh", "-c", "echo httpd starts; exec httpd -f -vv -p 80 -h /www"}, Env: []string{"PATH=" + Path},
	}, tools, www)
	return err
}

// nginxConfig logs to standard output: specs look for requests there.
const nginxConfig = `user nobody nogroup;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr;
events {}
http {
	access_log /dev/stdout;
	server {
		listen %d;
		root /usr/share/nginx/html;
	}
}
`

// addGroupImage adds the image whose /etc/group has its user in another group.
func (b *Builder) addGroupImage(out map[string]v1.Image, tools v1.Layer) error {
	t := newTree()
	users(t, "default-user:x:1000:1000::/home/default-user:/bin/sh\n",
		"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
	group, err := t.layer()
	if err != nil {
		return err
	}
	out[critestImages+"test-image-predefined-group:latest"], err = assemble(v1.Config{
		Cmd: []string{"sh"}, Env: []string{"PATH=" + Path}, User: "1000",
	}, tools, group)
	return err
}

// addPause adds the image that specs pull from two registries, and the
// one of containerd's own pods.
func (b *Builder) addPause(out map[string]v1.Image, _ v1.Layer) error {
	t := newTree()
	if err := t.host("pause", filepath.Join(b.Bin, "testbox")); err != nil {
		return fmt.Errorf("%w (made by: make testbins)", err)
	}
	layer, err := t.layer()
	if err != nil {
		return err
	}
	for _, version := range []string{"3.9", "3.10.2"} {
		if out["registry.k8s.io/pause:"+version], err = assemble(v1.Config{
			Entrypoint: []string{"/pause", "pause"}, Labels: map[string]string{"version": version}, User: "65535:65535",
		}, layer); err != nil {
			return err
		}
	}
	out["k8s.gcr.io/pause:3.9"] = out["registry.k8s.io/pause:3.9"]
	return nil
}

// addNoNewPrivs adds the image whose set-user-ID program prints whom it runs as.
func (b *Builder) addNoNewPrivs(out map[string]v1.Image, _ v1.Layer) error {
	program, err := os.ReadFile(filepath.Join(b.Bin, "testbox"))
	if err != nil {
		return fmt.Errorf("%w (made by: make testbins)", err)
	}
	t := newTree()
	t.file("nnp", 0o4755, program)
	layer, err := t.layer()
	if err != nil {
		return err
	}
	out[e2eImages+"nonewprivs:1.3"], err = assemble(v1.Config{Cmd: []string{"/nnp", "euid"}}, layer)
	return err
}

// users writes the files of users and groups, with more than those that every
// image has.
func users(t *tree, passwd, group string) {
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"+passwd+"nobody:x:65534:65534::/:/bin/sh\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\n"+group+"nogroup:x:65534:\n"))
}
