package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestVolumes(t *testing.T) {
	run(t, []scenario{
		{"a recursive read-only mount is read-only all the way down", "rro", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    volumeMounts:
    - {name: host, mountPath: /plain, readOnly: true}
    - {name: host, mountPath: /rro, readOnly: true, recursiveReadOnly: Enabled}
    - {name: host, mountPath: /possible, readOnly: true, recursiveReadOnly: IfPossible}
  volumes: [{name: host, hostPath: {path: /dev}}]
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			for point, want := range map[string]bool{"/plain": true, "/plain/shm": false, "/rro": true, "/rro/shm": true, "/possible/shm": true} {
				m, ok := r.Mount(point)
				equal(t, point+" is a mount", ok, true)
				equal(t, point+" is read-only", m.Has("ro"), want)
			}
		}},
		{"an emptyDir is shared by the containers of a pod and ends with it", "emptydir", `
spec:
  containers:
  - name: writer
    image: $BOX
    command: [sh, -c, 'echo shared > /out/f; exec testbox pause']
    volumeMounts: [{name: scratch, mountPath: /out}]
  - name: reader
    image: $BOX
    volumeMounts: [{name: scratch, mountPath: /in, readOnly: true}]
  volumes: [{name: scratch, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitReady()
			harness.Eventually(t, harness.PodTimeout, "the file with its content", func() string {
				if r := p.TryExec("reader", "cat", "/in/f"); r.Stdout != "shared\n" {
					return fmt.Sprintf("%q %s", r.Stdout, r.Stderr)
				}
				return ""
			})
			contains(t, "writing to the read-only mount", p.TryExec("reader", "touch", "/in/g").Stderr, "Read-only file system")
			dir := filepath.Join(p.Node().Config.KubeletDir, "pods", string(pod.UID))
			if _, err := os.Stat(filepath.Join(dir, "volumes/kubernetes.io~empty-dir/scratch/f")); err != nil {
				t.Errorf("on the host: %v", err)
			}
			p.Delete()
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("after the pod is gone: %s: %v", dir, err)
			}
		}},
		{"an emptyDir in memory is a tmpfs of the asked size", "memdir", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    volumeMounts: [{name: mem, mountPath: /mem}]
  volumes: [{name: mem, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
`, func(t *testing.T, p *harness.Pod) {
			m, ok := p.Report("main").Mount("/mem")
			equal(t, "mounted", ok, true)
			equal(t, "type", m.Type, "tmpfs")
			equal(t, "size", m.Has("size=8192k"), true)
			contains(t, "filling it", p.TryExec("main", "dd", "if=/dev/zero", "of=/mem/f", "bs=1M", "count=9").Stderr, "No space left")
		}},
		{"an emptyDir of huge pages has pages of the size that the pod asks for", "hugedir", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    resources: {limits: {memory: 64Mi, hugepages-2Mi: 4Mi}}
    volumeMounts: [{name: named, mountPath: /named}, {name: only, mountPath: /only}]
  volumes: [{name: named, emptyDir: {medium: HugePages-2Mi}}, {name: only, emptyDir: {medium: HugePages}}]
`, func(t *testing.T, p *harness.Pod) {
			if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
				t.Skipf("this kernel has no such pages: %v", err)
			}
			r := p.Report("main")
			for _, point := range []string{"/named", "/only"} {
				m, ok := r.Mount(point)
				equal(t, point+" is a mount", ok, true)
				equal(t, "file system of "+point, m.Type, "hugetlbfs")
				equal(t, point+" has pages of 2 MiB", m.Has("pagesize=2M"), true)
			}
		}},
		{"an image volume is pulled and shows the image's files read-only", "imagevolume", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, pause]
    volumeMounts:
    - {name: tools, mountPath: /tools}
    - {name: tools, mountPath: /bins, subPath: bin}
  volumes: [{name: tools, image: {reference: "$BUSYBOX", pullPolicy: IfNotPresent}}]
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			trimmed(t, "a program of the volume", p.Exec("main", "/tools/bin/busybox", "echo", "runs"), "runs")
			trimmed(t, "the part of the volume", p.Exec("main", "sh", "-c", "ls /bins | grep -x busybox"), "busybox")
			contains(t, "writing to it", p.TryExec("main", "touch", "/tools/new").Stderr, "Read-only file system")
			contains(t, "timeline", p.Node().Explain(p.Namespace, p.Name), "pull")
			harness.Eventually(t, harness.PodTimeout, "event of the pull", func() string {
				for _, e := range p.Node().Events() {
					if e.InvolvedObject.Name == p.Name && strings.Contains(e.Message, harness.Busybox) {
						return ""
					}
				}
				return "no event names the volume's image"
			})
			p.Delete()
		}},
		{"an image volume that cannot be had keeps back only the container that mounts it", "imagevolumebad", `
spec:
  containers:
  - name: absent
    image: $BOX
    command: [testbox, pause]
    volumeMounts: [{name: absent, mountPath: /v}]
  - name: part
    image: $BOX
    command: [testbox, pause]
    volumeMounts: [{name: box, mountPath: /v, subPath: no/such}]
  - name: never
    image: $BOX
    command: [testbox, pause]
    volumeMounts: [{name: never, mountPath: /v}]
  - name: fine
    image: $BOX
    command: [testbox, pause]
  volumes:
  - {name: absent, image: {reference: "registry.test/absent:1"}}
  - {name: never, image: {reference: "registry.test/absent:2", pullPolicy: Never}}
  - {name: box, image: {reference: "$BOX"}}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "no such image", p.WaitWaiting("absent", "ImagePullBackOff"), "registry.test/absent:1")
			contains(t, "never pulled", p.WaitWaiting("never", "ErrImageNeverPull"), `"registry.test/absent:2"`)
			contains(t, "no such part", p.WaitWaiting("part", "CreateContainerError"), `ImageVolumeMountFailed: image_sub_path "no/such"`)
			harness.Eventually(t, harness.PodTimeout, "the other container", func() string {
				return p.TryExec("fine", "true").Stderr
			})
		}},
		{"a hostPath is the host's directory, made when asked for", "hostpath", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'echo from-pod > /made/f; exec testbox pause']
    volumeMounts:
    - {name: made, mountPath: /made}
    - {name: config, mountPath: /node.yaml}
  volumes:
  - {name: made, hostPath: {path: $DIR/hostpath/made, type: DirectoryOrCreate}}
  - {name: config, hostPath: {path: $DIR/berth.yaml, type: File}}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			contains(t, "the host's file", p.Exec("main", "cat", "/node.yaml"), "nodeName: "+p.Node().Name)
			harness.Eventually(t, harness.PodTimeout, "file on the host", func() string {
				if data, err := os.ReadFile(p.Node().Dir + "/hostpath/made/f"); err != nil || string(data) != "from-pod\n" {
					return "it is not there"
				}
				return ""
			})
		}},
		{"a hostPath of the wrong type is reported", "wrongpath", `
spec:
  containers:
  - name: main
    image: $BOX
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, hostPath: {path: $DIR/berth.yaml, type: Directory}}]
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "event", p.WaitEvent("FailedMount", ""), "berth.yaml is not a directory: it is a file")
			p.WaitWaiting("main", "ContainerCreating")
		}},
		{"a config map volume has its files, modes and chosen items", "configmap", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    volumeMounts:
    - {name: all, mountPath: /all}
    - {name: some, mountPath: /some}
  volumes:
  - {name: all, configMap: {name: cm-volume, defaultMode: 0440}}
  - {name: some, configMap: {name: cm-volume, items: [{key: a, path: deep/er/A, mode: 0600}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cm-volume}
data: {a: alpha, b.conf: beta}
binaryData: {bin: AAEC}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			trimmed(t, "files", p.Exec("main", "ls", "/all"), "a\nb.conf\nbin")
			trimmed(t, "a", p.Exec("main", "cat", "/all/a"), "alpha")
			trimmed(t, "mode of b.conf", p.Exec("main", "stat", "-L", "-c", "%a", "/all/b.conf"), "440")
			trimmed(t, "link of a", p.Exec("main", "readlink", "/all/a"), "..data/a")
			trimmed(t, "size of bin", p.Exec("main", "stat", "-L", "-c", "%s", "/all/bin"), "3")
			trimmed(t, "item", p.Exec("main", "cat", "/some/deep/er/A"), "alpha")
			trimmed(t, "mode of the item", p.Exec("main", "stat", "-L", "-c", "%a", "/some/deep/er/A"), "600")
			trimmed(t, "files of some", p.Exec("main", "ls", "/some"), "deep")
			contains(t, "writing", p.TryExec("main", "touch", "/all/new").Stderr, "Read-only file system")
		}},
		{"a secret volume is in memory", "secret", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    volumeMounts: [{name: s, mountPath: /s, readOnly: true}]
  volumes: [{name: s, secret: {secretName: secret-volume, defaultMode: 0400}}]
---
apiVersion: v1
kind: Secret
metadata: {name: secret-volume}
stringData: {key: hidden}
`, func(t *testing.T, p *harness.Pod) {
			m, _ := p.Report("main").Mount("/s")
			equal(t, "type", m.Type, "tmpfs")
			trimmed(t, "mode", p.Exec("main", "stat", "-L", "-c", "%a", "/s/key"), "400")
			trimmed(t, "content", p.Exec("main", "cat", "/s/key"), "hidden")
		}},
		{"config map and secret volumes follow their objects, subPaths do not", "live", `
spec:
  containers:
  - name: main
    image: $BOX
    volumeMounts:
    - {name: c, mountPath: /c}
    - {name: c, mountPath: /pinned, subPath: k}
    - {name: s, mountPath: /s}
  volumes:
  - {name: c, configMap: {name: live}}
  - {name: s, secret: {secretName: live}}
`, func(t *testing.T, p *harness.Pod) {
			objects := func(value string) {
				p.Node().WriteManifest("live-objects.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: live}\ndata: {k: "+value+", "+value+": x}\n"+
					"---\napiVersion: v1\nkind: Secret\nmetadata: {name: live}\nstringData: {k: "+value+"}\n")
			}
			objects("one")
			before := p.WaitReady()
			trimmed(t, "first", p.Exec("main", "cat", "/c/k", "/pinned", "/s/k"), "oneoneone")
			objects("two")
			harness.Eventually(t, harness.PodTimeout, "the new values", func() string {
				if out := p.Exec("main", "cat", "/c/k", "/s/k"); out != "twotwo" {
					return out
				}
				return ""
			})
			trimmed(t, "files", p.Exec("main", "ls", "/c"), "k\ntwo")
			trimmed(t, "subPath", p.Exec("main", "cat", "/pinned"), "one")
			equal(t, "still the same pod", p.WaitReady().Status.ContainerStatuses[0].ContainerID, before.Status.ContainerStatuses[0].ContainerID)
		}},
		{"a volume of a missing config map holds the pod back and says so", "nomap", `
spec:
  containers:
  - name: main
    image: $BOX
    volumeMounts: [{name: c, mountPath: /c}]
  volumes: [{name: c, configMap: {name: nomap}}]
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "event", p.WaitEvent("FailedMount", `volume "c"`), `configmap "nomap" not found`)
			p.Node().WriteManifest("nomap-object.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: nomap}\ndata: {k: v}\n")
			p.WaitReady()
		}},
		{"a downwardAPI volume tells the pod about itself", "downward", `
  labels: {a: "1", b: "two"}
  annotations: {note: "line\nbreak"}
spec:
  containers:
  - name: main
    image: $BOX
    resources: {limits: {cpu: 250m, memory: 48Mi}}
    volumeMounts: [{name: d, mountPath: /d}]
  volumes:
  - name: d
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}
      - {path: name, fieldRef: {fieldPath: metadata.name}}
      - {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}
      - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}, mode: 0400}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			trimmed(t, "labels", p.Exec("main", "cat", "/d/labels"), "a=\"1\"\nb=\"two\"")
			trimmed(t, "note", p.Exec("main", "cat", "/d/note"), "line\nbreak")
			trimmed(t, "name", p.Exec("main", "cat", "/d/name"), "downward")
			trimmed(t, "cpu", p.Exec("main", "cat", "/d/cpu"), "250")
			trimmed(t, "memory", p.Exec("main", "cat", "/d/memory"), "50331648")
			trimmed(t, "mode", p.Exec("main", "stat", "-L", "-c", "%a", "/d/memory"), "400")
		}},
		{"a projected volume joins its sources", "projected", `
spec:
  containers:
  - name: main
    image: $BOX
    volumeMounts: [{name: p, mountPath: /p}]
  volumes:
  - name: p
    projected:
      defaultMode: 0444
      sources:
      - configMap: {name: projected, items: [{key: c, path: from/config}]}
      - secret: {name: projected, items: [{key: s, path: from/secret, mode: 0400}]}
      - downwardAPI: {items: [{path: from/name, fieldRef: {fieldPath: metadata.name}}]}
      - configMap: {name: nowhere, optional: true}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: projected}
data: {c: config}
---
apiVersion: v1
kind: Secret
metadata: {name: projected}
stringData: {s: secret}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			trimmed(t, "content", p.Exec("main", "sh", "-c", "cat /p/from/config /p/from/secret /p/from/name"), "configsecretprojected")
			trimmed(t, "modes", p.Exec("main", "sh", "-c", "cd /p/from && stat -L -c %a config secret name"), "444\n400\n444")
		}},
		{"subPaths are parts of a volume, from a variable too", "subpath", `
spec:
  initContainers:
  - name: prepare
    image: $BOX
    command: [sh, -c, 'mkdir /v/existing && echo there > /v/existing/f && echo one > /v/file']
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - name: main
    image: $BOX
    env: [{name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts:
    - {name: v, mountPath: /existing, subPath: existing}
    - {name: v, mountPath: /etc/file, subPath: file}
    - {name: v, mountPath: /made, subPath: made/for/me}
    - {name: v, mountPath: /mine, subPathExpr: pods/$(WHO)}
    - {name: v, mountPath: /whole}
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			trimmed(t, "existing", p.Exec("main", "cat", "/existing/f"), "there")
			trimmed(t, "file", p.Exec("main", "cat", "/etc/file"), "one")
			p.Exec("main", "sh", "-c", "echo x > /made/f; echo y > /mine/f")
			trimmed(t, "in the volume", p.Exec("main", "cat", "/whole/made/for/me/f", "/whole/pods/subpath/f"), "x\ny")
		}},
		{"a symlink in a volume cannot lead a subPath to the host", "subescape", `
spec:
  initContainers:
  - name: prepare
    image: $BOX
    command: [ln, -s, $DIR, /v/out]
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - name: main
    image: $BOX
    volumeMounts: [{name: v, mountPath: /host, subPath: out}]
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "message", p.WaitWaiting("main", "CreateContainerConfigError"), "subPath")
		}},
		{"fsGroup owns what a volume holds", "fsgroup", `
spec:
  securityContext: {fsGroup: 4321, runAsUser: 1000}
  containers:
  - name: main
    image: $BOX
    command: [testbox, report]
    volumeMounts:
    - {name: e, mountPath: /e}
    - {name: c, mountPath: /c}
  volumes:
  - {name: e, emptyDir: {}}
  - {name: c, configMap: {name: fsgroup, defaultMode: 0400}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fsgroup}
data: {k: v}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "groups", p.Report("main").Status["Groups"], "4321")
			trimmed(t, "the directory", p.Exec("main", "stat", "-c", "%g %a", "/e"), "4321 2777")
			p.Exec("main", "touch", "/e/new")
			trimmed(t, "a new file", p.Exec("main", "stat", "-c", "%u:%g", "/e/new"), "1000:4321")
			trimmed(t, "a projected file", p.Exec("main", "stat", "-L", "-c", "%g %a", "/c/k"), "4321 440")
			trimmed(t, "which is readable", p.Exec("main", "cat", "/c/k"), "v")
		}},
		{"mounts of the host do not reach a container that did not ask for them", "propagation", `
spec:
  containers:
  - name: main
    image: $BOX
    volumeMounts:
    - {name: v, mountPath: /private}
    - {name: v, mountPath: /follows, mountPropagation: HostToContainer}
  volumes: [{name: v, hostPath: {path: $DIR/propagation/v, type: Directory}}]
`, func(t *testing.T, p *harness.Pod) {
			// Only a shared mount can pass on what is mounted below it, and / is
			// not one everywhere. The pod waits until the directory is there.
			dir := p.Node().Dir + "/propagation"
			mountTmpfs(t, dir)
			if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir+"/v", 0o755); err != nil {
				t.Fatal(err)
			}
			p.WaitReady()
			mountTmpfs(t, dir+"/v/sub")
			trimmed(t, "private", p.Exec("main", "sh", "-c", "ls /private/sub"), "")
			trimmed(t, "follows", p.Exec("main", "sh", "-c", "ls /follows/sub"), "mounted")
		}},
	})
}

// TestClaimOutlivesItsPod replaces the pod, since the pod of a scenario goes
// with its claim.
func TestClaimOutlivesItsPod(t *testing.T) {
	n := startNode(t, harness.Options{})
	n.WriteManifest("claim.yaml", `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`)
	for _, name := range []string{"first", "second"} {
		p := n.Apply(t, name, manifest(n, name, `
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'echo $HOSTNAME >> /data/f; cat /data/f']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: kept}}]
`))
		p.WaitPhase(corev1.PodSucceeded)
		want := "first"
		if name == "second" {
			want = "first\nsecond"
		}
		trimmed(t, "what the claim holds", strings.TrimSpace(p.Logs("main")), want)
		p.Delete()
	}
	n.RemoveAll()
	n.CheckNothingLeft()
}
