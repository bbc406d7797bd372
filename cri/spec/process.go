package spec

import (
	"errors"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// processArgs joins the request's command and args with the image's entrypoint
// and cmd: a command replaces both of the image's, args replace only its cmd.
func processArgs(c *runtimeapi.ContainerConfig, image ocispec.ImageConfig) ([]string, error) {
	command, args := c.GetCommand(), c.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" {
		return nil, errors.New("no command: neither the container nor its image says what to run")
	}
	return all, nil
}

// processEnv sets a variable once, at the place where it came first: the
// request overrides the image, which overrides the defaults.
func processEnv(c *runtimeapi.ContainerConfig, image ocispec.ImageConfig, hostname string) []string {
	env := []string{defaultPath}
	if c.GetTty() {
		env = append(env, "TERM=xterm")
	}
	place := map[string]int{}
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		place[name] = i
	}
	set := func(entry string) {
		name, _, _ := strings.Cut(entry, "=")
		if i, ok := place[name]; ok {
			env[i] = entry
			return
		}
		place[name] = len(env)
		env = append(env, entry)
	}
	set("HOSTNAME=" + hostname)
	for _, e := range image.Env {
		if strings.Contains(e, "=") {
			set(e)
		}
	}
	for _, e := range c.GetEnvs() {
		set(e.GetKey() + "=" + string(e.GetValue()))
	}
	return env
}

func workingDir(c *runtimeapi.ContainerConfig, image ocispec.ImageConfig) string {
	for _, dir := range []string{c.GetWorkingDir(), image.WorkingDir} {
		if dir != "" {
			return absolute(dir)
		}
	}
	return "/"
}

// absolute: images are built with relative working directories now and then.
func absolute(dir string) string {
	if strings.HasPrefix(dir, "/") {
		return dir
	}
	return "/" + dir
}
