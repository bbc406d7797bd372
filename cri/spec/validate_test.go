package spec

import (
	"encoding/json"
	"math"
	"path"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestBadRequestsAreRefusedWithTheNameOfTheField(t *testing.T) {
	const meta = `"metadata":{"name":"n","namespace":"d","uid":"u"}`
	userns := func(options string) string {
		return `{` + meta + `,"linux":{"security_context":{"namespace_options":{"userns_options":` + options + `}}}}`
	}
	for _, c := range []struct{ sandbox, want string }{
		{`{}`, "config.metadata: it is missing"},
		{`{"metadata":{"namespace":"d","uid":"u"}}`, "config.metadata.name: it is empty"},
		{`{"metadata":{"name":"n","uid":"u"}}`, "config.metadata.namespace: it is empty"},
		{`{"metadata":{"name":"n","namespace":"d"}}`, "config.metadata.uid: it is empty"},
		{`{` + meta + `,"log_directory":"logs"}`, `config.log_directory: "logs" is not absolute`},
		{`{` + meta + `,"hostname":"` + strings.Repeat("h", 65) + `"}`, "config.hostname: "},
		{`{` + meta + `,"linux":{"cgroup_parent":"/a/../.."}}`, "config.linux.cgroup_parent: "},
		{`{` + meta + `,"port_mappings":[{"host_port":70000}]}`, "config.port_mappings: "},
		{`{` + meta + `,"linux":{"security_context":{"namespace_options":{"network":1}}}}`, "config.linux.security_context.namespace_options.network: "},
		{`{` + meta + `,"linux":{"security_context":{"namespace_options":{"ipc":3}}}}`, "config.linux.security_context.namespace_options.ipc: "},
		{`{` + meta + `,"linux":{"security_context":{"namespace_options":{"userns_options":{"mode":0}}}}}`, "config.linux.security_context.namespace_options.userns_options.uids: it must have 1 to 340 mappings"},
		{userns(`{"mode":2,"uids":[{}]}`), "config.linux.security_context.namespace_options.userns_options: ID mappings are for mode POD"},
		{userns(`{"mode":1}`), "config.linux.security_context.namespace_options.userns_options.mode: it is POD or NODE, not CONTAINER"},
		{userns(`{"uids":[{"host_id":1,"length":0}]}`), "config.linux.security_context.namespace_options.userns_options.uids[0]: 0 IDs from 0"},
		{userns(`{"uids":[{"host_id":4294967295,"length":2}]}`), "config.linux.security_context.namespace_options.userns_options.uids[0]: "},
		{userns(`{"uids":[{"host_id":10,"length":2},{"host_id":11,"container_id":5,"length":2}]}`), "config.linux.security_context.namespace_options.userns_options.uids[1]: it overlaps with [0]"},
		{userns(`{"uids":[{"host_id":10,"length":2},{"host_id":20,"container_id":1,"length":2}]}`), "config.linux.security_context.namespace_options.userns_options.uids[1]: it overlaps with [0]"},
		{userns(`{"uids":[{"host_id":10,"length":2}]}`), "config.linux.security_context.namespace_options.userns_options.gids: it must have"},
		{userns(`{"uids":[{"host_id":10,"length":2}],"gids":[{"host_id":10,"container_id":1,"length":2}]}`), "config.linux.security_context.namespace_options.userns_options.gids: ID 0 of the container must be mapped"},
		{userns(`{"uids":[{"host_id":10,"length":2}],"gids":[{"host_id":10,"length":2}]},"pid":2`), "config.linux.security_context.namespace_options.userns_options: a pod with a user namespace cannot use the node's pid"},
		{userns(`{"uids":[{"host_id":10,"length":2}],"gids":[{"host_id":10,"length":2}]},"ipc":2`), "config.linux.security_context.namespace_options.userns_options: a pod with a user namespace cannot use the node's ipc"},
		{userns(`{"uids":[{"host_id":10,"length":2}],"gids":[{"host_id":10,"length":2}]},"network":2`), ""},
		{`{` + meta + `,"linux":{"security_context":{"run_as_group":{"value":1}}}}`, "config.linux.security_context.run_as_group: it needs run_as_user"},
		{`{` + meta + `}`, ""},
	} {
		var config runtimeapi.PodSandboxConfig
		if err := json.Unmarshal([]byte(c.sandbox), &config); err != nil {
			t.Fatal(err)
		}
		check(t, c.sandbox, ValidateSandbox(&config), c.want)
	}
	security := func(fields string) string {
		return `{"metadata":{"name":"n"},"image":{"image":"i"},"linux":{"security_context":{` + fields + `}}}`
	}
	const base = `"metadata":{"name":"n"},"image":{"image":"i"}`
	for _, c := range []struct{ container, want string }{
		{`{}`, "config.metadata: it is missing"},
		{`{"metadata":{},"image":{"image":"i"}}`, "config.metadata.name: it is empty"},
		{`{"metadata":{"name":"n"}}`, "config.image.image: it is empty"},
		{`{` + base + `,"mounts":[{"container_path":"/a","image":{"image":"i"},"readonly":true,"uidMappings":[{"length":1}],"gidMappings":[{"length":1}]}]}`, "config.mounts[/a].uidMappings: those of an image are the pod's"},
		{security(`"apparmor":{"profile_type":2}`), "config.linux.security_context.apparmor.localhost_ref: it must name a profile"},
		{security(`"apparmor":{"profile_type":5}`), "config.linux.security_context.apparmor: profile type 5 is not known"},
		{security(`"apparmor_profile":"mine"`), "config.linux.security_context.apparmor: profile type -1 is not known"},
		{security(`"seccomp":{"profile_type":1,"localhost_ref":"a"}`), "config.linux.security_context.seccomp.localhost_ref: it is for profiles of type Localhost, not Unconfined"},
		{security(`"seccomp":{"profile_type":2,"localhost_ref":"a.json"}`), `config.linux.security_context.seccomp.localhost_ref: "a.json" is not an absolute path`},
		{security(`"seccomp_profile_path":"localhost/a.json"`), `config.linux.security_context.seccomp.localhost_ref: "a.json" is not an absolute path`},
		{security(`"seccomp_profile_path":"localhost//a.json"`), ""},
		{`{` + base + `,"annotations":{"io.kubernetes.cri.rdt-class":"gold"}}`, `config.annotations[io.kubernetes.cri.rdt-class]: RDT class "gold": there are no RDT classes on this node`},
		{`{` + base + `,"annotations":{"io.kubernetes.cri.blockio-class":"slow"}}`, `config.annotations[io.kubernetes.cri.blockio-class]: block I/O class "slow"`},
		{`{` + base + `,"linux":{"security_context":{"privileged":true}}}`, "config.linux.security_context.privileged: the pod was not created privileged"},
		{`{` + base + `,"linux":{"security_context":{"run_as_user":{"value":1},"run_as_username":"a"}}}`, "config.linux.security_context.run_as_username: "},
		{`{` + base + `,"linux":{"security_context":{"namespace_options":{"pid":3}}}}`, "config.linux.security_context.namespace_options.target_id: it is empty"},
		{`{` + base + `,"log_path":"../../etc/x"}`, "config.log_path: "},
		{`{` + base + `,"envs":[{"key":"A=B"}]}`, "config.envs: "},
		{`{` + base + `,"mounts":[{"container_path":"/","host_path":"/a"}]}`, "config.mounts: "},
		{`{` + base + `,"mounts":[{"container_path":"/a","host_path":"b"}]}`, "config.mounts[/a].host_path: "},
		{`{` + base + `,"mounts":[{"container_path":"/a","host_path":"/b","uidMappings":[{}]}]}`, "config.mounts[/a].uidMappings[0]: "},
		{`{` + base + `,"mounts":[{"container_path":"/a","host_path":"/b","uidMappings":[{"length":1}]}]}`, "config.mounts[/a].gidMappings: it must have"},
		{`{` + base + `,"linux":{"security_context":{"namespace_options":{"userns_options":{"uids":[{"length":1}],"gids":[{"length":1}]}}}}}`, "config.linux.security_context.namespace_options.userns_options: it is not that of the pod"},
		{`{` + base + `,"mounts":[{"container_path":"/a","image":{"image":"i"}}]}`, "config.mounts[/a].readonly: "},
		{`{` + base + `,"mounts":[{"container_path":"/a","image":{"image":"i"},"readonly":true,"host_path":"/b"}]}`, "config.mounts[/a].host_path: "},
		{`{` + base + `,"mounts":[{"container_path":"/a","image_sub_path":"b","host_path":"/b"}]}`, "config.mounts[/a].image_sub_path: "},
		{`{` + base + `,"devices":[{"container_path":"/dev/a","host_path":"a"}]}`, "config.devices: "},
		{`{` + base + `,"devices":[{"container_path":"/dev/a","host_path":"/dev/a","permissions":"rx"}]}`, "config.devices: permissions"},
		{`{` + base + `,"log_path":"n/0.log"}`, ""},
	} {
		var config runtimeapi.ContainerConfig
		if err := json.Unmarshal([]byte(c.container), &config); err != nil {
			t.Fatal(err)
		}
		pod := &runtimeapi.PodSandboxConfig{LogDirectory: "/var/log/pods/p"}
		check(t, c.container, ValidateContainer(&config, pod), c.want)
	}
}

func check(t *testing.T, input string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: refused: %v", input, err)
	case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)):
		t.Errorf("%s: got %v, want %s", input, err, want)
	}
}

// FuzzRequestsAreRefusedOrBuilt feeds configurations in the JSON that crictl
// takes them in: whatever passes the validation is built or refused, its log
// stays in the pod's directory, and no mount is on the root.
func FuzzRequestsAreRefusedOrBuilt(f *testing.F) {
	f.Add(`{"metadata":{"name":"n","namespace":"d","uid":"u"},"log_directory":"/logs"}`,
		`{"metadata":{"name":"n"},"image":{"image":"i"},"command":["/x"],"log_path":"a/0.log","mounts":[{"container_path":"/a","host_path":"/b"}]}`, "redis:logs", "root:x:0:0:::")
	f.Add(`{"metadata":{"name":"n","namespace":"d","uid":"u"}}`,
		`{"metadata":{"name":"n"},"image":{"image":"i"},"linux":{"resources":{"oom_score_adj":-2000},"security_context":{"run_as_user":{"value":-1}}}}`, "1:2", "")
	f.Add(`{"metadata":{"name":"n","namespace":"d","uid":"u"},"linux":{"security_context":{"namespace_options":{"userns_options":{"uids":[{"host_id":65536,"length":65536}],"gids":[{"host_id":65536,"length":10},{"host_id":4294967290,"container_id":2000,"length":3}]}}}}}`,
		`{"metadata":{"name":"n"},"image":{"image":"i"},"command":["/x"],"mounts":[{"container_path":"/a","host_path":"/b","uidMappings":[{"host_id":1,"length":1}],"gidMappings":[{"host_id":1,"length":1}]}],
		"linux":{"security_context":{"run_as_user":{"value":65535},"supplemental_groups":[2001],"seccomp_profile_path":"runtime/default","apparmor_profile":"localhost/x","namespace_options":{"userns_options":
		{"uids":[{"host_id":65536,"length":65536}],"gids":[{"host_id":65536,"length":10},{"host_id":4294967290,"container_id":2000,"length":3}]}}}}}`, "", "")
	f.Fuzz(func(t *testing.T, pod, container, imageUser, passwd string) {
		in := testInput()
		in.Sandbox, in.Container = &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
		if json.Unmarshal([]byte(pod), in.Sandbox) != nil || json.Unmarshal([]byte(container), in.Container) != nil {
			return
		}
		if ValidateSandbox(in.Sandbox) != nil || ValidateContainer(in.Container, in.Sandbox) != nil {
			return
		}
		if dir, p := in.Sandbox.GetLogDirectory(), in.Container.GetLogPath(); dir != "" && p != "" {
			if full := path.Join(dir, p); full != path.Clean(dir) && !strings.HasPrefix(full, strings.TrimSuffix(path.Clean(dir), "/")+"/") {
				t.Errorf("the log is %s, outside %s", full, dir)
			}
		}
		for _, m := range in.Container.GetMounts() {
			if path.Clean(m.GetContainerPath()) == "/" {
				t.Errorf("mount on the root: %v", m)
			}
			in.Mounts = append(in.Mounts, Mount{Source: m.GetHostPath(), Destination: m.GetContainerPath(), Propagation: m.GetPropagation(), UIDs: m.GetUidMappings(), GIDs: m.GetGidMappings()})
		}
		in.Image.User, in.Accounts = imageUser, Accounts{Passwd: []byte(passwd), Group: []byte(passwd)}
		s, user, err := Build(in, testHost())
		if u := UserNamespace(in.Sandbox); err == nil && u != nil {
			for _, gid := range append(user.SupplementalGroups, user.Gid) {
				if id, ok := hostID(u.Gids, gid); !ok || id > math.MaxUint32 {
					t.Errorf("group %d is not in %v", gid, u.Gids)
				}
			}
			if _, ok := hostID(u.Uids, user.Uid); !ok {
				t.Errorf("user %d is not in %v", user.Uid, u.Uids)
			}
		}
		if err == nil && (len(s.Process.Args) == 0 || user.Uid < 0 || user.Gid < 0) {
			t.Errorf("built %+v for %v", s.Process, user)
		}
	})
}
