package volume

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadFileReadsOnlyPlainFilesOfTheVolume(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir+"/vol/a/file", "content")
	mustWrite(t, dir+"/vol/large", strings.Repeat("x", maxRead+1))
	mustWrite(t, dir+"/outside", "secret")
	for link, to := range map[string]string{"in": "a/file", "out": "../outside", "absolute": dir + "/outside"} {
		if err := os.Symlink(to, dir+"/vol/"+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(dir+"/vol/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	vol := Mounted{Name: "v", HostPath: dir + "/vol"}
	for path, want := range map[string]string{
		"a/file":     "content",
		"in":         "content",
		"out":        `volume "v": read out: a symlink leads out of the volume`,
		"absolute":   `volume "v": read absolute: a symlink leads out of the volume`,
		"../outside": `volume "v": subPath "../outside" must not contain '..'`,
		"a":          `volume "v": read a: not a regular file`,
		"pipe":       `volume "v": read pipe: not a regular file`,
		"gone":       `volume "v": read gone: no such file or directory`,
		"large":      `volume "v": read large: larger than 1048576 bytes`,
	} {
		got, err := ReadFile(vol, path)
		if err != nil {
			got = []byte(err.Error())
		}
		if string(got) != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if _, err := ReadFile(Mounted{Name: "image"}, "x"); err == nil || err.Error() != `volume "image": has no files on the host` {
		t.Errorf("error %v", err)
	}
}
