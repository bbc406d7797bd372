package kubeletconfig

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeletapis "k8s.io/kubelet/pkg/apis"
)

// newFlagSet has every flag of the kubelet; parsing writes c. seccomp is the
// flag that can only switch seccompDefault on.
func newFlagSet(c *Config, seccomp *bool) *pflag.FlagSet {
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // what is to be said is in Warnings
	fs.Usage = func() {}
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	ownFlags(fs, &c.Flags)
	fs.BoolVar(seccomp, "seccomp-default", false, "run workloads with the profile RuntimeDefault where they name none")
	fieldFlags(fs, &c.KubeletConfiguration)
	logFlags(fs, &c.Logging)
	withoutEffectFlags(fs)
	return fs
}

// ownFlags are those that no field stands for (cmd/kubelet/app/options,
// KubeletFlags.AddFlags).
func ownFlags(fs *pflag.FlagSet, f *Flags) {
	for _, s := range []struct {
		to          *string
		name, usage string
	}{
		{&f.Kubeconfig, "kubeconfig", "how to reach the API server; without it there is none"},
		{&f.BootstrapKubeconfig, "bootstrap-kubeconfig", "used to get a client certificate where --kubeconfig does not exist"},
		{&f.ConfigFile, "config", "file with a KubeletConfiguration; flags go before it"},
		{&f.ConfigDir, "config-dir", "directory with *.conf files that are merged over --config in their order"},
		{&f.CertDir, "cert-dir", "directory of the node's certificates"},
		{&f.RootDir, "root-dir", "the kubelet's directory"},
		{&f.HostnameOverride, "hostname-override", "name of the node; default: the host's"},
		{&f.NodeIP, "node-ip", "IP address of the node, or two of both families with a comma"},
		{&f.CloudProvider, "cloud-provider", "external, or empty"},
		{&f.CredentialProviderConfig, "image-credential-provider-config", "file or directory that configures plugins with credentials for pulls"},
		{&f.CredentialProviderBinDir, "image-credential-provider-bin-dir", "directory of those plugins"},
		{&f.LockFile, "lock-file", "file that is locked while the node runs"},
	} {
		fs.StringVar(s.to, s.name, *s.to, s.usage)
	}
	fs.BoolVar(&f.ExitOnLockContention, "exit-on-lock-contention", f.ExitOnLockContention, "end when another opens --lock-file")
	fs.BoolVar(&f.IgnoreEvictionThreshold, "experimental-allocatable-ignore-eviction", f.IgnoreEvictionThreshold,
		"leave hard eviction thresholds out of allocatable")
	fs.Int32Var(&f.MaxDeadPerContainer, "maximum-dead-containers-per-container", f.MaxDeadPerContainer, "dead containers that stay of each container; below 0: all")
	fs.Int32Var(&f.MaxDead, "maximum-dead-containers", f.MaxDead, "dead containers that stay on the node; below 0: all")
	fs.DurationVar(&f.MinDeadAge, "minimum-container-ttl-duration", f.MinDeadAge, "age from which dead containers are removed")
	labels := labelsValue{&f.NodeLabels}
	fs.Var(labels, "node-labels", "labels of the Node when it is registered: KEY=VALUE with commas")
	fs.BoolVarP(&f.Help, "help", "h", false, "print this")
	fs.Var((*versionValue)(&f.Version), "version", "print the version of Kubernetes; =raw with details; =vX.Y.Z reports that one")
	fs.Lookup("version").NoOptDefVal = "true"
}

// logFlags are k8s.io/component-base/logs/api/v1, AddFlags, with those of the
// JSON format, which it has only where that format's library is linked.
func logFlags(fs *pflag.FlagSet, c *logsapi.LoggingConfiguration) {
	logsapi.AddFlags(c, fs)
	if fs.Lookup("log-json-split-stream") == nil {
		fs.BoolVar(&c.Options.JSON.SplitStream, "log-json-split-stream", c.Options.JSON.SplitStream, "logging.options.json.splitStream")
		fs.Var(&c.Options.JSON.InfoBufferSize, "log-json-info-buffer-size", "logging.options.json.infoBufferSize")
	}
}

// ignored are flags that are read, for their type, and forgotten.
var ignored = map[string][]string{
	"string": {
		"runtime-cgroups", "experimental-mounter-path", "boot-id-file", "container-hints", "containerd", "containerd-namespace",
		"event-storage-age-limit", "event-storage-event-limit", "machine-id-file", "storage-driver-db", "storage-driver-host",
		"storage-driver-password", "storage-driver-table", "storage-driver-user",
		// Not the kubelet's any more, and still in kubeadm-flags.env of nodes
		// that were joined with an older kubeadm.
		"pod-infra-container-image",
	},
	"bool":     {"enable-load-reader", "log-cadvisor-usage", "storage-driver-secure"},
	"int":      {"application-metrics-count-limit"},
	"duration": {"global-housekeeping-interval", "housekeeping-interval", "storage-driver-buffer-duration"},
}

func withoutEffectFlags(fs *pflag.FlagSet) {
	for kind, names := range ignored {
		for _, name := range names {
			switch kind {
			case "string":
				fs.String(name, "", "without effect")
			case "bool":
				fs.Bool(name, false, "without effect")
			case "int":
				fs.Int(name, 0, "without effect")
			case "duration":
				fs.Duration(name, time.Duration(0), "without effect")
			}
		}
	}
}

// given are the names of the flags on the command line, sorted.
func given(fs *pflag.FlagSet) []string {
	var names []string
	fs.Visit(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// flagWarnings name the flags without effect.
func flagWarnings(used []string) []string {
	var out []string
	for _, name := range used {
		for _, names := range ignored {
			if slices.Contains(names, name) {
				out = append(out, fmt.Sprintf("flag --%s has no effect", name))
			}
		}
	}
	return out
}

// Usage is the help for the kubelet's flags. A flag that stands for a field of
// KubeletConfiguration has the field's path as its text.
func Usage() string {
	var seccomp bool
	c := newConfig()
	setLegacyDefaults(&c.KubeletConfiguration)
	return newFlagSet(c, &seccomp).FlagUsagesWrapped(2)
}

// versionValue is a flag as k8s.io/component-base/version/verflag has it.
type versionValue string

func (v *versionValue) Set(s string) error {
	if s == "raw" || strings.HasPrefix(s, "v") {
		*v = versionValue(s)
		return nil
	}
	on, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q must be true, false, raw or a version", s)
	}
	*v = ""
	if on {
		*v = "true"
	}
	return nil
}

func (v *versionValue) String() string {
	if v == nil || *v == "" {
		return "false"
	}
	return string(*v)
}

func (*versionValue) Type() string     { return "version" }
func (*versionValue) IsBoolFlag() bool { return true }

// labelsValue collects KEY=VALUE over every time the flag is given.
type labelsValue struct{ to *map[string]string }

func (v labelsValue) Set(s string) error {
	if *v.to == nil {
		*v.to = map[string]string{}
	}
	m := cliflag.ConfigurationMap(*v.to)
	return m.Set(s)
}

func (v labelsValue) String() string {
	if v.to == nil {
		return ""
	}
	m := cliflag.ConfigurationMap(*v.to)
	return m.String()
}

func (labelsValue) Type() string { return "mapStringString" }

// validateFlags is cmd/kubelet/app/options, ValidateKubeletFlags, and what a
// kubelet says later than that.
func validateFlags(f *Flags) error {
	for _, key := range f.labels() {
		value := f.NodeLabels[key]
		if isKubernetes(key) && !kubeletapis.IsKubeletLabel(key) {
			return fmt.Errorf("--node-labels: %q: in kubernetes.io and k8s.io only these are allowed: %s, and those in %s", key,
				strings.Join(kubeletapis.KubeletLabels(), ", "), strings.Join(kubeletapis.KubeletLabelNamespaces(), ", "))
		}
		if errs := validation.IsQualifiedName(key); len(errs) > 0 {
			return fmt.Errorf("--node-labels: %q: %s", key, strings.Join(errs, "; "))
		}
		if errs := validation.IsValidLabelValue(value); len(errs) > 0 {
			return fmt.Errorf("--node-labels: %s=%q: %s", key, value, strings.Join(errs, "; "))
		}
	}
	if f.CloudProvider != "" && f.CloudProvider != "external" {
		return fmt.Errorf("--cloud-provider: %q must be external or empty: others are no part of Kubernetes any more", f.CloudProvider)
	}
	if f.ExitOnLockContention && f.LockFile == "" {
		return fmt.Errorf("--exit-on-lock-contention: it needs --lock-file")
	}
	if (f.CredentialProviderConfig == "") != (f.CredentialProviderBinDir == "") {
		return fmt.Errorf("--image-credential-provider-config and --image-credential-provider-bin-dir: either both are given or none")
	}
	_, err := f.NodeIPs()
	return err
}

func isKubernetes(label string) bool {
	domain, _, found := strings.Cut(label, "/")
	if !found {
		return false
	}
	for _, own := range []string{"kubernetes.io", "k8s.io"} {
		if domain == own || strings.HasSuffix(domain, "."+own) {
			return true
		}
	}
	return false
}
