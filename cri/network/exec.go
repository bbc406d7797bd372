package network

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
)

// inProcess marks the path of a plugin that is a function of this process.
const inProcess = "in-process:"

// exec runs plugins for libcni: its own by a call, all others by execution.
type exec struct {
	*invoke.RawExec
	version.PluginDecoder
	plugins map[string]Plugin
}

func newExec(plugins map[string]Plugin) *exec {
	return &exec{RawExec: &invoke.RawExec{Stderr: os.Stderr}, plugins: plugins}
}

// FindInPath implements invoke.Exec.
func (e *exec) FindInPath(plugin string, paths []string) (string, error) {
	if _, ok := e.plugins[plugin]; ok {
		return inProcess + plugin, nil
	}
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec.
func (e *exec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name, ok := strings.CutPrefix(path, inProcess)
	if !ok {
		return e.RawExec.ExecPlugin(ctx, path, stdin, environ)
	}
	plugin, ok := e.plugins[name]
	if !ok {
		return nil, fmt.Errorf("plugin %s is not part of this process", name)
	}
	return plugin(ctx, environ, stdin)
}
