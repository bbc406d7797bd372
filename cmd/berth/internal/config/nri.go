package config

import (
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NRI is the interface to node resource plugins.
type NRI struct {
	// Enable serves plugins. Default: unless another runtime serves SocketPath.
	Enable *bool `json:"enable,omitempty"`
	// SocketPath is where plugins connect. Default: /var/run/nri/nri.sock.
	SocketPath string `json:"socketPath,omitempty"`
	// PluginPath holds plugins that are started with the node. Default: /opt/nri/plugins.
	PluginPath string `json:"pluginPath,omitempty"`
	// ConfigPath holds their configuration. Default: /etc/nri/conf.d.
	ConfigPath string `json:"configPath,omitempty"`
	// RegistrationTimeout is a plugin's to register in. Default: 5s.
	RegistrationTimeout metav1.Duration `json:"registrationTimeout,omitzero"`
	// RequestTimeout is a plugin's to answer in; one that does not is dropped.
	// Default: 2s.
	RequestTimeout metav1.Duration `json:"requestTimeout,omitzero"`
}

// setDefaults has the values of containerd.
func (n *NRI) setDefaults() {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&n.SocketPath, "/var/run/nri/nri.sock"}, {&n.PluginPath, "/opt/nri/plugins"}, {&n.ConfigPath, "/etc/nri/conf.d"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if n.RegistrationTimeout.Duration == 0 {
		n.RegistrationTimeout.Duration = 5 * time.Second
	}
	if n.RequestTimeout.Duration == 0 {
		n.RequestTimeout.Duration = 2 * time.Second
	}
}

// validate reports mistakes by key.
func (n *NRI) validate(reject func(key, format string, args ...any)) {
	for _, p := range []struct{ key, path string }{
		{"nri.socketPath", n.SocketPath}, {"nri.pluginPath", n.PluginPath}, {"nri.configPath", n.ConfigPath},
	} {
		if !filepath.IsAbs(p.path) {
			reject(p.key, "%q must be an absolute path", p.path)
		}
	}
	if len(n.SocketPath) > 107 {
		reject("nri.socketPath", "%q is longer than the 107 bytes that a socket's path may have", n.SocketPath)
	}
	for _, t := range []struct {
		key   string
		value time.Duration
	}{{"nri.registrationTimeout", n.RegistrationTimeout.Duration}, {"nri.requestTimeout", n.RequestTimeout.Duration}} {
		if t.value < time.Millisecond {
			reject(t.key, "%s must be at least 1ms", t.value)
		}
	}
}
