// Kubeletfacts prints what the kubelet of this module's version says about its
// own configuration, as JSON: its flags, its defaults, its feature gates. Berth
// is compared with it: see agent/kubeletconfig.
//
//	cd tests/tools && go run ./kubeletfacts >../../agent/kubeletconfig/testdata/kubelet.json
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	_ "k8s.io/component-base/logs/json/register" // as the kubelet has it
	"k8s.io/component-base/version"
	"k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/scheme"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
)

type flag struct {
	Name       string `json:"name"`
	Shorthand  string `json:"shorthand,omitempty"`
	Type       string `json:"type"`
	Default    string `json:"default"`
	Deprecated bool   `json:"deprecated,omitempty"`
	NoValue    string `json:"noValue,omitempty"`
}

type gate struct {
	Default      bool     `json:"default"`
	Locked       bool     `json:"locked,omitempty"`
	Stage        string   `json:"stage"`
	Dependencies []string `json:"dependencies,omitempty"`
}

type facts struct {
	Version      string                        `json:"version"`
	Flags        []flag                        `json:"flags"`
	FlagDefaults *v1beta1.KubeletConfiguration `json:"flagDefaults"` // without a file
	FileDefaults *v1beta1.KubeletConfiguration `json:"fileDefaults"` // of an empty file
	EvictionHard map[string]string             `json:"evictionHard"` // of an empty file, beside them
	FeatureGates map[string]gate               `json:"featureGates"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubeletfacts:", err)
		os.Exit(1)
	}
}

func run() error {
	_ = app.NewKubeletCommand // links what the kubelet registers
	f := facts{EvictionHard: eviction.DefaultEvictionHard, FeatureGates: map[string]gate{}}
	f.Version = version.Get().GitVersion

	config, err := options.NewKubeletConfiguration()
	if err != nil {
		return err
	}
	s, _, err := scheme.NewSchemeAndCodecs()
	if err != nil {
		return err
	}
	f.FlagDefaults, f.FileDefaults = &v1beta1.KubeletConfiguration{}, &v1beta1.KubeletConfiguration{}
	if err := s.Convert(config, f.FlagDefaults, nil); err != nil {
		return err
	}
	s.Default(f.FileDefaults)

	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	options.NewKubeletFlags().AddFlags(fs)
	options.AddKubeletConfigFlags(fs, config)
	options.AddGlobalFlags(fs)
	fs.VisitAll(func(p *pflag.Flag) {
		f.Flags = append(f.Flags, flag{
			Name: p.Name, Shorthand: p.Shorthand, Type: p.Value.Type(), Default: p.DefValue,
			Deprecated: p.Deprecated != "", NoValue: p.NoOptDefVal,
		})
	})

	gates := utilfeature.DefaultMutableFeatureGate
	dependencies := gates.Dependencies()
	for name, spec := range gates.GetAll() {
		g := gate{Default: spec.Default, Locked: spec.LockToDefault, Stage: string(spec.PreRelease)}
		for _, d := range dependencies[name] {
			g.Dependencies = append(g.Dependencies, string(d))
		}
		f.FeatureGates[string(name)] = g
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(f)
}
