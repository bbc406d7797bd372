package podspec

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRunAsNonRoot(t *testing.T) {
	uid := func(n int64) *runtimeapi.Image {
		return &runtimeapi.Image{Uid: &runtimeapi.Int64Value{Value: n}}
	}
	const where = ` (pod: "web_ns(uid-1)", container: app)`
	for _, tt := range []struct {
		name, pod, container string
		image                *runtimeapi.Image
		err                  string
	}{
		{"an image with a numeric user runs", `{runAsNonRoot: true}`, `{}`, uid(33), ""},
		{"an image of root is refused", `{runAsNonRoot: true}`, `{}`, uid(0), "container has runAsNonRoot and image will run as root" + where},
		{"an image that names no user is root's", `{runAsNonRoot: true}`, `{}`, &runtimeapi.Image{}, "container has runAsNonRoot and image will run as root" + where},
		{"a user name cannot be verified", `{}`, `{runAsNonRoot: true}`, &runtimeapi.Image{Username: "redis"},
			"container has runAsNonRoot and image has non-numeric user (redis), cannot verify user is non-root" + where},
		{"runAsUser wins over the image", `{runAsNonRoot: true, runAsUser: 5}`, `{}`, uid(0), ""},
		{"runAsUser 0 breaks the policy", `{runAsNonRoot: true}`, `{runAsUser: 0}`, uid(33), "container's runAsUser breaks non-root policy" + where},
		{"the container wins over the pod", `{runAsNonRoot: true}`, `{runAsNonRoot: false}`, uid(0), ""},
		{"a UID out of range is refused", `{runAsNonRoot: true}`, `{}`, uid(1 << 40),
			"container has runAsNonRoot and image has an invalid user id (1099511627776). (Must be 1-(2147483647)): must be between 0 and 2147483647, inclusive" + where},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := envContainer(t, `{securityContext: `+tt.container+`}`)
			c.Pod.Spec.SecurityContext = dnsPod(t, `{securityContext: `+tt.pod+`}`).Spec.SecurityContext
			c.Image = tt.image
			_, err := ContainerConfig(t.Context(), c, testNode, objects{})
			if tt.err == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var configErr *ConfigError
			if !errors.As(err, &configErr) || configErr.Message != tt.err {
				t.Errorf("error %v\nwant  %s", err, tt.err)
			}
		})
	}
}

func TestContainerSecurity(t *testing.T) {
	defaulted := testNode
	defaulted.SeccompDefault = true
	for _, tt := range []struct {
		name, pod, container string
		node                 Node
		want                 string // of describe
	}{
		{"nothing asked for", `{}`, `{}`, testNode, "seccomp=Unconfined masked=13 readonly=5"},
		{"the node's seccomp default", `{}`, `{}`, defaulted, "seccomp=RuntimeDefault masked=13 readonly=5"},
		{"Unconfined wins over the node's default", `{seccompProfile: {type: Unconfined}}`, `{}`, defaulted, "seccomp=Unconfined masked=13 readonly=5"},
		{"the container's profile wins over the pod's", `{seccompProfile: {type: RuntimeDefault}}`, `{seccompProfile: {type: Localhost, localhostProfile: a/b.json}}`, testNode,
			"seccomp=Localhost:/var/lib/kubelet/seccomp/a/b.json masked=13 readonly=5"},
		{"an unmasked proc", `{}`, `{procMount: Unmasked}`, testNode, "seccomp=Unconfined masked=0 readonly=0"},
		{"no privilege escalation", `{}`, `{allowPrivilegeEscalation: false}`, testNode, "seccomp=Unconfined masked=13 readonly=5 nnp"},
		{"the pod's AppArmor profile", `{appArmorProfile: {type: RuntimeDefault}}`, `{}`, testNode, "seccomp=Unconfined masked=13 readonly=5 apparmor=RuntimeDefault(runtime/default)"},
		{"the container's AppArmor profile", `{appArmorProfile: {type: RuntimeDefault}}`, `{appArmorProfile: {type: Unconfined}}`, testNode,
			"seccomp=Unconfined masked=13 readonly=5 apparmor=Unconfined(unconfined)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := envContainer(t, `{securityContext: `+tt.container+`}`)
			c.Pod.Spec.SecurityContext = dnsPod(t, `{securityContext: `+tt.pod+`}`).Spec.SecurityContext
			cfg, err := ContainerConfig(t.Context(), c, tt.node, objects{})
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(cfg.Linux.SecurityContext); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func describe(sc *runtimeapi.LinuxContainerSecurityContext) string {
	profile := func(p *runtimeapi.SecurityProfile) string {
		if p.ProfileType == runtimeapi.SecurityProfile_Localhost {
			return "Localhost:" + p.LocalhostRef
		}
		return p.ProfileType.String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "seccomp=%s masked=%d readonly=%d", profile(sc.Seccomp), len(sc.MaskedPaths), len(sc.ReadonlyPaths))
	if sc.NoNewPrivs {
		b.WriteString(" nnp")
	}
	if sc.Apparmor != nil {
		//lint:ignore SA1019 runtimes that know no typed profiles read nothing else
		b.WriteString(" apparmor=" + profile(sc.Apparmor) + "(" + sc.ApparmorProfile + ")")
	}
	return b.String()
}

func TestBadSecuritySettingsAreConfigErrors(t *testing.T) {
	for _, tt := range []struct{ name, container, err string }{
		{"a Localhost profile without a name", `{securityContext: {seccompProfile: {type: Localhost}}}`, "localhostProfile must be set if seccompProfile type is Localhost."},
		{"an AppArmor profile without a name", `{securityContext: {appArmorProfile: {type: Localhost}}}`, "missing localhost apparmor profile name"},
		{"a signal that does not exist", `{lifecycle: {stopSignal: SIGFOO}}`, `unknown stop signal "SIGFOO"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ContainerConfig(t.Context(), envContainer(t, tt.container), testNode, objects{})
			var configErr *ConfigError
			if !errors.As(err, &configErr) || configErr.Message != tt.err {
				t.Errorf("error %#v, want ConfigError %q", err, tt.err)
			}
		})
	}
}
