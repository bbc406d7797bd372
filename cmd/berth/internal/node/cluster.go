package node

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-io/berth/agent"
	"github.com/berth-io/berth/agent/node"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// newCluster connects to the cluster that the configuration names; nil: it
// names none.
func newCluster(c config.Config, host podspec.Node) (*agent.Cluster, error) {
	if c.Kubeconfig == "" {
		return nil, nil
	}
	rc, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	rc.UserAgent = "berth/" + node.KubeletVersion
	rc.ContentType, rc.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	rc.QPS, rc.Burst = 50, 100 // kubeAPIQPS, kubeAPIBurst
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	events, err := kubernetes.NewForConfig(rest.CopyConfig(rc)) // limits of its own
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
	}
	info, err := hostInfo()
	if err != nil {
		return nil, err
	}
	return &agent.Cluster{
		Client: client, Events: events.CoreV1().Events(""), MaxImages: 50,
		Node: node.Config{
			Labels: hostLabels(host.Name), Register: true,
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
			Every:       10 * time.Second, Report: 5 * time.Minute, Lease: 40 * time.Second,
		},
		Facts: node.Facts{
			Addresses: addresses(host), Capacity: host.Allocatable, Allocatable: host.Allocatable, Info: info, Port: 10250,
		},
	}, nil
}

func hostLabels(name string) map[string]string {
	return map[string]string{
		v1.LabelHostname: name, v1.LabelOSStable: runtime.GOOS, v1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": runtime.GOOS, "beta.kubernetes.io/arch": runtime.GOARCH,
	}
}

func addresses(host podspec.Node) []v1.NodeAddress {
	var out []v1.NodeAddress
	for _, ip := range host.HostIPs {
		out = append(out, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip})
	}
	return append(out, v1.NodeAddress{Type: v1.NodeHostName, Address: host.Name})
}

// hostInfo is what the host says of itself.
func hostInfo() (v1.NodeSystemInfo, error) {
	boot, err := bootID()
	if err != nil {
		return v1.NodeSystemInfo{}, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return v1.NodeSystemInfo{}, fmt.Errorf("ask the kernel for its version: %w", err)
	}
	return v1.NodeSystemInfo{
		MachineID:       firstOf("/etc/machine-id", "/var/lib/dbus/machine-id"),
		SystemUUID:      strings.ToLower(firstOf("/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid", "/etc/machine-id")),
		BootID:          boot,
		KernelVersion:   unix.ByteSliceToString(uts.Release[:]),
		OSImage:         osImage(),
		KubeletVersion:  node.KubeletVersion,
		OperatingSystem: runtime.GOOS,
		Architecture:    runtime.GOARCH,
	}, nil
}

// firstOf is the content of the first of the files that has some. A host that
// has none of them has no such name.
func firstOf(paths ...string) string {
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil {
			if text := strings.TrimRight(strings.TrimSpace(string(data)), "\x00"); text != "" {
				return text
			}
		}
	}
	return ""
}

// osImage is the PRETTY_NAME of os-release(5).
func osImage() string {
	for line := range strings.Lines(firstOf("/etc/os-release", "/usr/lib/os-release")) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return "Unknown"
}
