package manifest

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// handler is what a probe or a hook does: exactly one of its fields is set.
type handler struct {
	exec  *v1.ExecAction
	http  *v1.HTTPGetAction
	tcp   *v1.TCPSocketAction
	grpc  *v1.GRPCAction
	sleep *v1.SleepAction
}

func validateProbes(c *v1.Container, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, p := range []struct {
		name  string
		probe *v1.Probe
		once  bool // one success decides
	}{
		{"startupProbe", c.StartupProbe, true},
		{"livenessProbe", c.LivenessProbe, true},
		{"readinessProbe", c.ReadinessProbe, false},
	} {
		if p.probe == nil {
			continue
		}
		at := path.Child(p.name)
		errs = append(errs, validateProbe(p.probe, c, spec, at)...)
		if p.once && p.probe.SuccessThreshold != 1 {
			errs = append(errs, field.Invalid(at.Child("successThreshold"), p.probe.SuccessThreshold, "must be 1"))
		}
		if !p.once && p.probe.TerminationGracePeriodSeconds != nil {
			errs = append(errs, field.Invalid(at.Child("terminationGracePeriodSeconds"), *p.probe.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
		}
	}
	return errs
}

func validateProbe(p *v1.Probe, c *v1.Container, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	h := handler{exec: p.Exec, http: p.HTTPGet, tcp: p.TCPSocket, grpc: p.GRPC}
	errs := h.validate(c, spec, path)
	for _, n := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds},
		{"timeoutSeconds", p.TimeoutSeconds},
		{"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold},
		{"failureThreshold", p.FailureThreshold},
	} {
		if n.value < 0 {
			errs = append(errs, field.Invalid(path.Child(n.name), n.value, "must be greater than or equal to 0"))
		}
	}
	if s := p.TerminationGracePeriodSeconds; s != nil && *s <= 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *s, "must be greater than 0"))
	}
	return errs
}

func validateHooks(c *v1.Container, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	if c.Lifecycle == nil {
		return nil
	}
	var errs field.ErrorList
	path = path.Child("lifecycle")
	if h := c.Lifecycle.PostStart; h != nil {
		errs = append(errs, handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}.validate(c, spec, path.Child("postStart"))...)
	}
	if h := c.Lifecycle.PreStop; h != nil {
		errs = append(errs, handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}.validate(c, spec, path.Child("preStop"))...)
	}
	if s := c.Lifecycle.StopSignal; s != nil {
		if spec.OS == nil {
			errs = append(errs, field.Forbidden(path.Child("stopSignal"), "may not be set for containers with empty `spec.os.name`"))
		} else {
			errs = append(errs, oneOf(*s, path.Child("stopSignal"), stopSignals...)...)
		}
	}
	return errs
}

func (h handler) validate(c *v1.Container, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	handlers := 0
	one := func(name string) *field.Path {
		at := path.Child(name)
		if handlers++; handlers > 1 {
			errs = append(errs, field.Forbidden(at, "may not specify more than 1 handler type"))
		}
		return at
	}
	if h.exec != nil {
		if at := one("exec"); len(h.exec.Command) == 0 {
			errs = append(errs, field.Required(at.Child("command"), ""))
		}
	}
	if h.http != nil {
		at := one("httpGet")
		errs = append(errs, validatePort(h.http.Port, c, at.Child("port"))...)
		errs = append(errs, oneOf(h.http.Scheme, at.Child("scheme"), v1.URISchemeHTTP, v1.URISchemeHTTPS)...)
		for i, header := range h.http.HTTPHeaders {
			errs = append(errs, invalidWith(validation.IsHTTPHeaderName(header.Name), at.Child("httpHeaders").Index(i).Child("name"), header.Name)...)
		}
	}
	if h.tcp != nil {
		errs = append(errs, validatePort(h.tcp.Port, c, one("tcpSocket").Child("port"))...)
	}
	if h.grpc != nil {
		errs = append(errs, validatePort(intstr.FromInt32(h.grpc.Port), c, one("grpc").Child("port"))...)
	}
	if h.sleep != nil {
		at := one("sleep")
		if grace := *spec.TerminationGracePeriodSeconds; h.sleep.Seconds < 0 || grace >= 0 && h.sleep.Seconds > grace {
			errs = append(errs, field.Invalid(at.Child("seconds"), h.sleep.Seconds,
				fmt.Sprintf("must be non-negative and not more than terminationGracePeriodSeconds (%d)", grace)))
		}
	}
	if handlers == 0 {
		errs = append(errs, field.Required(path, "must specify a handler type"))
	}
	return errs
}

// validatePort checks a port number, or that the container has a port of that name.
func validatePort(port intstr.IntOrString, c *v1.Container, path *field.Path) field.ErrorList {
	if port.Type == intstr.Int {
		return invalidWith(validation.IsValidPortNum(port.IntValue()), path, port.IntValue())
	}
	if msgs := validation.IsValidPortName(port.StrVal); len(msgs) > 0 {
		return invalidWith(msgs, path, port.StrVal)
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return nil
		}
	}
	return field.ErrorList{field.NotFound(path, port.StrVal)}
}

// stopSignals are those a Linux container may ask to be stopped with.
var stopSignals = []v1.Signal{
	"SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGIO",
	"SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGSEGV", "SIGSTKFLT", "SIGSTOP",
	"SIGSYS", "SIGTERM", "SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM",
	"SIGWINCH", "SIGXCPU", "SIGXFSZ", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4", "SIGRTMIN+5",
	"SIGRTMIN+6", "SIGRTMIN+7", "SIGRTMIN+8", "SIGRTMIN+9", "SIGRTMIN+10", "SIGRTMIN+11", "SIGRTMIN+12", "SIGRTMIN+13",
	"SIGRTMIN+14", "SIGRTMIN+15", "SIGRTMAX-14", "SIGRTMAX-13", "SIGRTMAX-12", "SIGRTMAX-11", "SIGRTMAX-10",
	"SIGRTMAX-9", "SIGRTMAX-8", "SIGRTMAX-7", "SIGRTMAX-6", "SIGRTMAX-5", "SIGRTMAX-4", "SIGRTMAX-3", "SIGRTMAX-2",
	"SIGRTMAX-1", "SIGRTMAX",
}
