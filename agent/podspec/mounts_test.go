package podspec

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/csi/volume"
)

func TestVolumeMounts(t *testing.T) {
	env := []*runtimeapi.KeyValue{{Key: "POD", Value: []byte("web")}, {Key: "EMPTY"}, {Key: "UP", Value: []byte("..")}}
	const files = "/etc/hosts<-/h | /dev/log<-/t"
	for _, tt := range []struct{ name, mounts, want, err string }{
		{"no volumes", `[]`, files, ""},
		{"a volume", `[{name: v, mountPath: /v}]`, "/v<-/vol/v | " + files, ""},
		{"a read-only mount, a read-only volume", `[{name: v, mountPath: /v, readOnly: true}, {name: ro, mountPath: /ro}]`, "/v<-/vol/v ro | /ro<-/vol/ro ro | " + files, ""},
		{"a relative path is below the root", `[{name: v, mountPath: a/b}]`, "/a/b<-/vol/v | " + files, ""},
		{"propagation", `[{name: v, mountPath: /v, mountPropagation: Bidirectional}, {name: v, mountPath: /w, mountPropagation: None}]`,
			"/v<-/vol/v PROPAGATION_BIDIRECTIONAL | /w<-/vol/v | " + files, ""},
		{"recursive read-only", `[{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: Enabled}]`, "/v<-/vol/v ro rro | " + files, ""},
		{"an image volume", `[{name: i, mountPath: /v}]`, "/v<-sha256:1 ro | " + files, ""},
		{"part of an image volume", `[{name: i, mountPath: /v, subPathExpr: "a/$(POD)"}]`, "/v<-sha256:1 a/web ro | " + files, ""},
		{"a hosts file of its own", `[{name: v, mountPath: /etc/hosts, subPath: hosts}]`, "/etc/hosts<-/pin/0/v/hosts rw | /dev/log<-/t", ""},
		{"a subPath is pinned with its mount's index and mode", `[{name: v, mountPath: /a}, {name: v, mountPath: /b, subPath: x/y, readOnly: true}]`,
			"/a<-/vol/v | /b<-/pin/1/v/x/y ro ro | " + files, ""},
		{"a subPathExpr is expanded", `[{name: v, mountPath: /v, subPathExpr: "logs/$(POD)"}]`, "/v<-/pin/0/v/logs/web rw | " + files, ""},
		{"a subPathExpr of unknown and empty variables", `[{name: v, mountPath: /v, subPathExpr: "$(NO)/$(EMPTY)/$(POD)"}]`, "", "missing value for EMPTY, NO"},
		{"a subPathExpr that leaves the volume", `[{name: v, mountPath: /v, subPathExpr: "a/$(UP)/b"}]`, "", "unable to provision SubPath `a/../b`: must not contain '..'"},
		{"an absolute subPath", `[{name: v, mountPath: /v, subPath: /etc}]`, "", "error SubPath `/etc` must not be an absolute path"},
		{"a subPath that cannot be pinned says nothing about the host", `[{name: v, mountPath: /v, subPath: bad}]`, "", `failed to prepare subPath for volumeMount "v" of container "app"`},
		{"a volume that is not there", `[{name: gone, mountPath: /v}]`, "", `cannot find volume "gone" to mount into container "app"`},
		{"recursive read-only of a writable mount", `[{name: v, mountPath: /v, recursiveReadOnly: IfPossible}]`, "",
			`failed to resolve recursive read-only mode: volume "v" requested recursive read-only mode, but it is not read-only`},
		{"an unknown propagation", `[{name: v, mountPath: /v, mountPropagation: Both}]`, "", `invalid MountPropagation mode: "Both"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := envContainer(t, `{terminationMessagePath: /dev/log, volumeMounts: `+tt.mounts+`}`).Container
			mounts, err := VolumeMounts(c, env, MountSources{
				Volumes: map[string]volume.Mounted{
					"v":  {Name: "v", HostPath: "/vol/v"},
					"ro": {Name: "ro", HostPath: "/vol/ro", ReadOnly: true},
					"i":  {Name: "i", ReadOnly: true},
				},
				Images: map[string]*runtimeapi.ImageSpec{"i": {Image: "sha256:1"}},
				SubPath: func(index int, vol volume.Mounted, subPath string, readOnly bool) (string, error) {
					if subPath == "bad" {
						return "", errors.New("/vol/v/bad leads to /root")
					}
					mode := "rw"
					if readOnly {
						mode = "ro"
					}
					return fmt.Sprintf("/pin/%d/%s/%s %s", index, vol.Name, subPath, mode), nil
				},
				HostsFile:         "/h",
				TerminationLog:    "/t",
				RecursiveReadOnly: true,
			})
			if tt.err != "" {
				var configErr *ConfigError
				if !errors.As(err, &configErr) || configErr.Message != tt.err {
					t.Fatalf("error %#v, want ConfigError %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range mounts {
				s := m.ContainerPath + "<-" + m.HostPath + m.GetImage().GetImage()
				if m.ImageSubPath != "" {
					s += " " + m.ImageSubPath
				}
				if m.Propagation != 0 {
					s += " " + m.Propagation.String()
				}
				if m.Readonly {
					s += " ro"
				}
				if m.RecursiveReadOnly {
					s += " rro"
				}
				got = append(got, s)
			}
			if s := strings.Join(got, " | "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}
