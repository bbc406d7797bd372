package images

import (
	"archive/tar"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func TestBusyboxHasItsAppletsAsLinksAndTheSameDigestEachTime(t *testing.T) {
	needs(t, "busybox")
	img := image(t, (&Builder{}).Busybox)
	again := image(t, (&Builder{}).Busybox)
	first, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if first != second {
		t.Errorf("the digest changed from %s to %s", first, second)
	}
	files := list(t, img)
	if h := files["bin/sh"]; h.Typeflag != tar.TypeLink || h.Linkname != "bin/busybox" {
		t.Errorf("bin/sh: %+v", h)
	}
	if h := files["tmp"]; h.Mode != 0o1777 {
		t.Errorf("tmp: %+v", h)
	}
}

func TestRedisBringsItsLibraries(t *testing.T) {
	needs(t, "busybox", "ldd")
	b := &Builder{Debs: "../../out/debs/root"}
	if _, err := b.find("redis-server"); err != nil {
		t.Skip(err)
	}
	files := list(t, image(t, b.Redis))
	var libc, loader, jemalloc bool
	for name := range files {
		libc = libc || strings.HasSuffix(name, "/libc.so.6")
		jemalloc = jemalloc || strings.HasSuffix(name, "/libjemalloc.so.2")
		loader = loader || strings.Contains(name, "/ld-linux")
	}
	if !libc || !loader || !jemalloc {
		t.Errorf("libc %v, loader %v, jemalloc %v", libc, loader, jemalloc)
	}
	for name := range files {
		if strings.Contains(name, "debs") {
			t.Errorf("%s: a place of this machine", name)
		}
	}
	if _, ok := files["usr/bin/redis-server"]; !ok {
		t.Error("no redis-server")
	}
}

func TestLibrariesOfUnpackedPackagesGoWhereTheLoaderLooks(t *testing.T) {
	dir := t.TempDir()
	err := addLibraries(newTree(), []byte("\tlinux-vdso.so.1 (0x00007f7ba3989000)\n\tlibgone.so.1 => not found\n"), dir)
	if err == nil || err.Error() != "shared library libgone.so.1 is not on this machine" {
		t.Errorf("got %v", err)
	}
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (scripts/setup test installs it)", p)
		}
	}
}

func image(t *testing.T, build func() (v1.Image, error)) v1.Image {
	t.Helper()
	img, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func list(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	content := mutate.Extract(img)
	defer content.Close()
	files := map[string]*tar.Header{}
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(h.Name, "/")] = h
	}
}
