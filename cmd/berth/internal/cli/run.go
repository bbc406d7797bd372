package cli

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// runFlags are what berth run can say about its pod. Whoever needs more writes
// a manifest.
type runFlags struct {
	name, restart, pull string
	env, ports, volumes []string
	command             bool
	wait                bool
}

func runCommand(o *options) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run IMAGE [-- ARG...]",
		Short: "Run an image as a pod",
		Long: `Run an image as a pod with one container. The pod's manifest is kept in the
manifest directory, so that it comes back after a reboot; remove it with berth rm.`,
		Example: "  berth run docker.io/library/redis\n  berth run --name web -p 8080:80 nginx\n  berth run busybox --restart Never -- echo hello",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pod, err := f.pod(o.namespace, args[0], args[1:])
			if err != nil {
				return err
			}
			c, err := o.client()
			if err != nil {
				return err
			}
			manifest, err := json.Marshal(pod)
			if err != nil {
				return fmt.Errorf("encode the pod: %w", err)
			}
			var made v1.Pod
			if err := call(cmd.Context(), c, "POST", "/run", manifest, &made); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "pod/%s created\n", made.Name)
			if !f.wait {
				return nil
			}
			return await(cmd.Context(), c, made.Namespace, made.Name, func(p *v1.Pod) bool {
				return p != nil && (isReady(p) || p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "the pod's name; default: from the image")
	fl.StringVar(&f.restart, "restart", "Always", "Always, OnFailure or Never")
	fl.StringVar(&f.pull, "pull", "", "Always, IfNotPresent or Never")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE")
	fl.StringArrayVarP(&f.ports, "publish", "p", nil, "[HOSTIP:]HOSTPORT:PORT[/udp]")
	fl.StringArrayVarP(&f.volumes, "volume", "v", nil, "HOSTPATH:PATH[:ro]")
	fl.BoolVar(&f.command, "command", false, "the arguments replace the image's entrypoint too")
	fl.BoolVar(&f.wait, "wait", false, "return when the pod is ready or has ended")
	return cmd
}

func (f *runFlags) pod(namespace, image string, args []string) (*v1.Pod, error) {
	name := f.name
	if name == "" {
		name = nameFor(image)
	}
	c := v1.Container{Name: name, Image: image, ImagePullPolicy: v1.PullPolicy(f.pull)}
	if f.command {
		c.Command = args
	} else {
		c.Args = args
	}
	for _, e := range f.env {
		key, value, found := strings.Cut(e, "=")
		if !found {
			return nil, fmt.Errorf("--env %q: it must be NAME=VALUE", e)
		}
		c.Env = append(c.Env, v1.EnvVar{Name: key, Value: value})
	}
	for _, p := range f.ports {
		port, err := parsePort(p)
		if err != nil {
			return nil, err
		}
		c.Ports = append(c.Ports, port)
	}
	pod := &v1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"run": name}},
		Spec:       v1.PodSpec{RestartPolicy: v1.RestartPolicy(f.restart)},
	}
	for i, v := range f.volumes {
		parts := strings.Split(v, ":")
		if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && parts[2] != "ro" {
			return nil, fmt.Errorf("--volume %q: it must be HOSTPATH:PATH[:ro]", v)
		}
		volume := fmt.Sprintf("v%d", i)
		pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: volume, VolumeSource: v1.VolumeSource{
			HostPath: &v1.HostPathVolumeSource{Path: parts[0]},
		}})
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: volume, MountPath: parts[1], ReadOnly: len(parts) == 3})
	}
	pod.Spec.Containers = []v1.Container{c}
	return pod, nil
}

var notInName = regexp.MustCompile(`[^a-z0-9-]+`)

// nameFor makes a pod name of an image reference: redis-x7k2q of docker.io/library/redis:8.
func nameFor(image string) string {
	base, _, _ := strings.Cut(path.Base(image), "@")
	base, _, _ = strings.Cut(base, ":")
	base = strings.Trim(notInName.ReplaceAllString(strings.ToLower(base), "-"), "-")
	if base == "" {
		base = "pod"
	}
	return base + "-" + strings.ToLower(rand.Text()[:5])
}

func parsePort(text string) (v1.ContainerPort, error) {
	port := v1.ContainerPort{Protocol: v1.ProtocolTCP}
	bad := fmt.Errorf("--publish %q: it must be [HOSTIP:]HOSTPORT:PORT[/udp]", text)
	rest, protocol, found := strings.Cut(text, "/")
	if found {
		port.Protocol = v1.Protocol(strings.ToUpper(protocol))
	}
	i := strings.LastIndex(rest, ":")
	if i < 0 {
		return port, bad
	}
	container, host := rest[i+1:], rest[:i]
	if j := strings.LastIndex(host, ":"); j >= 0 {
		port.HostIP, host = strings.Trim(host[:j], "[]"), host[j+1:]
	}
	for _, n := range []struct {
		text string
		to   *int32
	}{{container, &port.ContainerPort}, {host, &port.HostPort}} {
		v, err := strconv.ParseUint(n.text, 10, 16)
		if err != nil || v == 0 {
			return port, bad
		}
		*n.to = int32(v)
	}
	return port, nil
}
