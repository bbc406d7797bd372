// Package images builds the test images on the spot, from Debian's static
// busybox, Debian's redis-server and the test programs below cmd/. No registry
// on the internet is asked for anything.
package images

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Path is the PATH that all images set.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Builder makes images. Bin is where `make testbins` puts the test programs;
// Debs is where scripts/setup unpacks what it does not install, or empty;
// Peers is where `make control` puts the programs of Kubernetes, or empty.
type Builder struct {
	Bin   string
	Debs  string
	Peers string

	base v1.Layer
}

// Box is the image of most test pods: busybox with its applets as hard links,
// the testbox program, and a passwd file with the users root, nobody (65534)
// and tester (1000, group 1000, also in group extra, 2000).
func (b *Builder) Box() (v1.Image, error) {
	layers, err := b.boxLayers()
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{Cmd: []string{"/bin/testbox", "pause"}, Env: []string{"PATH=" + Path}}, layers...)
}

// Configured is Box with everything that an image configuration can say about
// its process, to be overridden or inherited by pods.
func (b *Builder) Configured() (v1.Image, error) {
	layers, err := b.boxLayers()
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{
		Entrypoint: []string{"/bin/testbox"},
		Cmd:        []string{"report"},
		Env:        []string{"PATH=" + Path, "FROM_IMAGE=yes", "OVERRIDDEN=image"},
		WorkingDir: "/home/tester",
		User:       "tester",
		Volumes:    map[string]struct{}{"/image-volume": {}},
		StopSignal: "SIGINT",
	}, layers...)
}

// Busybox is busybox alone: about 2 MB, for measurements.
func (b *Builder) Busybox() (v1.Image, error) {
	base, err := b.baseLayer()
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=" + Path}}, base)
}

// Redis is Debian's redis-server with the shared libraries it names, on busybox.
func (b *Builder) Redis() (v1.Image, error) {
	base, err := b.baseLayer()
	if err != nil {
		return nil, err
	}
	t := newTree()
	for _, program := range []string{"redis-server", "redis-cli"} {
		if err := b.program(t, program); err != nil {
			return nil, err
		}
	}
	t.dir("data", 0o777)
	redis, err := t.layer()
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{
		Cmd:          []string{"redis-server", "--protected-mode", "no", "--dir", "/data"},
		Env:          []string{"PATH=" + Path},
		WorkingDir:   "/data",
		ExposedPorts: map[string]struct{}{"6379/tcp": {}},
	}, base, redis)
}

func (b *Builder) boxLayers() ([]v1.Layer, error) {
	base, err := b.baseLayer()
	if err != nil {
		return nil, err
	}
	t := newTree()
	if err := t.host("bin/testbox", filepath.Join(b.Bin, "testbox")); err != nil {
		return nil, fmt.Errorf("%w (made by: make testbins)", err)
	}
	programs, err := t.layer()
	if err != nil {
		return nil, err
	}
	return []v1.Layer{base, programs}, nil
}

func (b *Builder) baseLayer() (v1.Layer, error) {
	if b.base != nil {
		return b.base, nil
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w (scripts/setup test installs busybox-static)", err)
	}
	t := newTree()
	if err := busyboxTree(t, busybox); err != nil {
		return nil, err
	}
	t.dir("home/tester", 0o777)
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\ntester:x:1000:1000::/home/tester:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\ntester:x:1000:\nextra:x:2000:tester\nnobody:x:65534:\n"))
	b.base, err = t.layer()
	return b.base, err
}

// busyboxTree adds a busybox, its applets as hard links, and the directories
// that every system has.
func busyboxTree(t *tree, busybox string) error {
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list the applets of %s: %w", busybox, err)
	}
	if err := t.host("bin/busybox", busybox); err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			t.hardlink("bin/"+applet, "bin/busybox")
		}
	}
	for _, dir := range []string{"dev", "etc", "home", "mnt", "proc", "run", "sys", "var", "usr/bin"} {
		t.dir(dir, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	return nil
}

// program adds an executable of this machine, or one unpacked in Debs, with
// its shared libraries.
func (b *Builder) program(t *tree, name string) error {
	return b.programAs(t, "usr/bin/"+name, name)
}

// programAs adds it under another path.
func (b *Builder) programAs(t *tree, to, name string) error {
	path, err := b.find(name)
	if err != nil {
		return err
	}
	if err := t.host(to, path); err != nil {
		return err
	}
	return b.libraries(t, path)
}

// libraries adds the shared libraries that an executable names.
func (b *Builder) libraries(t *tree, path string) error {
	debs, err := filepath.Abs(b.Debs) // ldd prints paths as they are given to it
	if err != nil {
		return err
	}
	libs, err := filepath.Glob(filepath.Join(debs, "usr/lib/*-linux-gnu"))
	if err != nil {
		return err
	}
	more, err := filepath.Glob(filepath.Join(debs, "lib/*-linux-gnu"))
	if err != nil {
		return err
	}
	libs = append(libs, more...)
	ldd := exec.Command("ldd", path)
	ldd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"))
	out, err := ldd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("ldd %s: %w: %s", path, err, out)
	}
	return addLibraries(t, out, debs)
}

func (b *Builder) find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"usr/bin", "usr/sbin", "bin", "sbin"} {
		path := filepath.Join(b.Debs, dir, name)
		if _, err := os.Stat(path); b.Debs != "" && err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s on this machine (scripts/setup test unpacks one)", name)
}

var (
	// "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f7ba3888000)" or
	// "/lib64/ld-linux-x86-64.so.2 (0x00007f7ba398b000)"
	libraryLine = regexp.MustCompile(`^\s*(?:(\S+) => )?(/\S+) \(0x`)
	missingLine = regexp.MustCompile(`(?m)^\s*(\S+) => not found`)
)

// addLibraries puts each library where the loader of the image looks for it.
func addLibraries(t *tree, lddOutput []byte, debs string) error {
	if m := missingLine.FindSubmatch(lddOutput); m != nil {
		return fmt.Errorf("shared library %s is not on this machine", m[1])
	}
	for line := range bytes.Lines(lddOutput) {
		m := libraryLine.FindSubmatch(line)
		if m == nil {
			continue // the vdso
		}
		from := string(m[2])
		to := strings.TrimPrefix(strings.TrimPrefix(from, debs), "/")
		if err := t.host(to, from); err != nil {
			return err
		}
	}
	return nil
}

func assemble(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = config
	return mutate.ConfigFile(img, file)
}
