package selinux

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakePolicy is container-selinux's, as far as it is asked.
type fakePolicy struct {
	process, file string
	unknown       string // a part of contexts that it does not know
	relabelled    map[string]string
	refuse        error
}

func newPolicy() *fakePolicy {
	return &fakePolicy{
		process: "system_u:system_r:container_t:s0", file: "system_u:object_r:container_file_t:s0",
		relabelled: map[string]string{},
	}
}

func (p *fakePolicy) Contexts() (process, file string) { return p.process, p.file }

func (p *fakePolicy) Check(context string) error {
	if p.unknown != "" && strings.Contains(context, p.unknown) {
		return errors.New("invalid argument")
	}
	return nil
}

func (p *fakePolicy) Relabel(path, context string) error {
	p.relabelled[path] = context
	return p.refuse
}

func newLabels(t *testing.T, policy Policy, categories int) *Labels {
	t.Helper()
	l, err := New(policy, categories)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

type opts = runtimeapi.SELinuxOption

func TestLabelsOfPodsAndContainers(t *testing.T) {
	const plain, files = "system_u:system_r:container_t:", "system_u:object_r:container_file_t:"
	// Two categories make one pair, so that what is random is c0,c1.
	for _, c := range []struct {
		name           string
		pod, container *opts
		privileged     bool
		want           Label
	}{
		{"nothing asked for: the pod's categories", nil, nil, false, Label{plain + "s0:c0,c1", files + "s0:c0,c1"}},
		{"empty options are none", &opts{}, &opts{}, false, Label{plain + "s0:c0,c1", files + "s0:c0,c1"}},
		{"the level of the pod", &opts{Level: "s0:c5,c7"}, nil, false, Label{plain + "s0:c5,c7", files + "s0:c5,c7"}},
		{"the level of the container", nil, &opts{Level: "s0:c5"}, false, Label{plain + "s0:c5", files + "s0:c5"}},
		{"a level without categories is a level", &opts{Level: "s0"}, nil, false, Label{plain + "s0", files + "s0"}},
		{"another type has the pod's level", &opts{Level: "s0:c5,c7"}, &opts{Type: "container_logreader_t"}, false,
			Label{"system_u:system_r:container_logreader_t:s0:c5,c7", files + "s0:c5,c7"}},
		{"the pod's type", &opts{Type: "container_init_t"}, nil, false, Label{"system_u:system_r:container_init_t:s0:c0,c1", files + "s0:c0,c1"}},
		{"the container's wins", &opts{Type: "container_init_t", Level: "s0:c1"}, &opts{Type: "container_t", Level: "s0:c2"}, false, Label{plain + "s0:c2", files + "s0:c2"}},
		{"all four", nil, &opts{User: "u_u", Role: "r_r", Type: "t_t", Level: "s0:c9,c10"}, false,
			Label{"u_u:r_r:t_t:s0:c9,c10", "u_u:object_r:container_file_t:s0:c9,c10"}},
		{"privileged", nil, nil, true, Label{"system_u:system_r:spc_t:s0", files + "s0:c0,c1"}},
		{"privileged, whatever it asks for", nil, &opts{Type: "container_t", Level: "s0:c3"}, true, Label{"system_u:system_r:spc_t:s0", files + "s0:c3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLabels(t, newPolicy(), 2)
			pod, err := l.Pod(c.pod)
			if err != nil {
				t.Fatal(err)
			}
			got, err := l.Container(pod, c.container, c.privileged)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, c.want)
			}
			l.Release(got)
			l.Release(pod)
			if len(l.levels.used) != 0 {
				t.Errorf("still reserved: %v", l.levels.used)
			}
		})
	}
}

func TestAPodFromBeforeLabelsWereSwitchedOnGivesItsContainersTheirOwn(t *testing.T) {
	l := newLabels(t, newPolicy(), 2)
	got, err := l.Container(Label{}, &opts{Type: "x_t"}, false)
	if err != nil || got.Process != "system_u:system_r:x_t:s0:c0,c1" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestALevelIsFreeWhenNobodyHasItAnyMore(t *testing.T) {
	l := newLabels(t, newPolicy(), 2)
	pod, err := l.Pod(nil)
	if err != nil {
		t.Fatal(err)
	}
	container, err := l.Container(pod, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	taken := func() bool {
		other, err := l.Pod(nil)
		if err == nil {
			l.Release(other)
			return false
		}
		if !strings.Contains(err.Error(), "all pairs of 2 SELinux categories are taken: raise selinux.categoryRange") {
			t.Errorf("error is %v", err)
		}
		return true
	}
	l.Release(pod)
	if !taken() {
		t.Error("the container's level was given to another pod")
	}
	l.Retain(container) // as a restart finds it in a record
	l.Release(container)
	if !taken() {
		t.Error("a label that two have is free after one release")
	}
	l.Release(container)
	if taken() {
		t.Error("nobody has it, and it is not free")
	}
	l.Release(Label{})
	l.Retain(Label{})
	if taken() {
		t.Error("no label reserves something")
	}
}

func TestEachPodHasCategoriesOfItsOwn(t *testing.T) {
	const categories = 9 // 36 pairs
	l := newLabels(t, newPolicy(), categories)
	if _, err := l.Pod(&opts{Level: "s0:c0,c1"}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{"s0:c0,c1": true}
	for range categories*(categories-1)/2 - 1 {
		pod, err := l.Pod(nil)
		if err != nil {
			t.Fatalf("after %d: %v", len(seen), err)
		}
		level := levelOf(pod)
		if seen[level] || levelOf(Label{File: pod.Process}) != level {
			t.Errorf("%+v: its level is another pod's, or not that of its files", pod)
		}
		seen[level] = true
	}
	if _, err := l.Pod(nil); err == nil {
		t.Error("there is one more pair than there can be")
	}
}

func TestWhatThePolicyDoesNotKnowIsRefusedAndReservesNothing(t *testing.T) {
	policy := newPolicy()
	l := newLabels(t, policy, 2)
	policy.unknown = "ghost_t"
	_, err := l.Pod(&opts{Type: "ghost_t"})
	const want = "linux.security_context.selinux_options: the SELinux policy does not know the context system_u:system_r:ghost_t:s0:c0,c1: invalid argument"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if len(l.levels.used) != 0 {
		t.Errorf("still reserved: %v", l.levels.used)
	}
	policy.unknown = "spc_t"
	l = newLabels(t, policy, 2)
	if got, err := l.Container(Label{}, nil, true); err != nil || got.Process != "" {
		t.Errorf("privileged under a policy without %s: %+v, %v", privilegedType, got, err)
	}
}

func TestAPolicyWithoutLevelsHasNone(t *testing.T) {
	l := newLabels(t, &fakePolicy{process: "system_u:system_r:container_t", file: "system_u:object_r:container_file_t"}, 2)
	for range 3 {
		if got, err := l.Pod(nil); err != nil || got != (Label{"system_u:system_r:container_t", "system_u:object_r:container_file_t"}) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
}

func TestAPolicyWithoutContainersIsSaid(t *testing.T) {
	if _, err := New(&fakePolicy{}, 2); err == nil || !strings.Contains(err.Error(), "install container-selinux") {
		t.Errorf("error is %v", err)
	}
}

func TestFilesGetTheLabelOfTheContainer(t *testing.T) {
	policy := newPolicy()
	l := newLabels(t, policy, 2)
	pod, err := l.Pod(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Relabel("/data", pod); err != nil || policy.relabelled["/data"] != pod.File {
		t.Errorf("relabelled %v, %v", policy.relabelled, err)
	}
	policy.refuse = errors.New("not allowed")
	if err := l.Relabel("/", pod); err == nil || err.Error() != "give / the SELinux label "+pod.File+": not allowed" {
		t.Errorf("error is %v", err)
	}
	if err := l.Relabel("/none", Label{}); err != nil || policy.relabelled["/none"] != "" {
		t.Errorf("without a label: %v, %v", policy.relabelled, err)
	}
}

func TestANodeThatLabelsNothingGivesOutNothing(t *testing.T) {
	var l *Labels
	pod, err := l.Pod(&opts{Level: "s0:c1"})
	if err != nil || pod != (Label{}) {
		t.Errorf("pod: %+v, %v", pod, err)
	}
	if c, err := l.Container(pod, &opts{Type: "x_t"}, true); err != nil || c != (Label{}) {
		t.Errorf("container: %+v, %v", c, err)
	}
	l.Retain(pod)
	l.Release(pod)
	if err := l.Relabel("/nowhere", Label{File: "x:y:z"}); err != nil {
		t.Error(err)
	}
}

func TestOptionsThatAreNoPartOfAContextAreNamed(t *testing.T) {
	for _, good := range []*opts{nil, {}, {Level: "s0"}, {Level: "s0-s15:c0.c1023"}, {Level: "s0:c1,c2.c5,c9"}, {User: "u", Role: "r", Type: "svirt_lxc_net_t"}} {
		if err := Validate(good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for want, bad := range map[string]*opts{
		`config.linux.security_context.selinux_options.level: "s0:c1," is not a level of SELinux`:    {Level: "s0:c1,"},
		`config.linux.security_context.selinux_options.level: "c1" is not a level of SELinux`:        {Level: "c1"},
		`config.linux.security_context.selinux_options.type: "a_t:s0" is not a type of SELinux`:      {Type: "a_t:s0"},
		`config.linux.security_context.selinux_options.user: "a,b" is not a user of SELinux`:         {User: "a,b"},
		`config.linux.security_context.selinux_options.role: "\"r\"" is not a role of SELinux`:       {Role: `"r"`},
		`config.linux.security_context.selinux_options.level: "s0\nc1" is not a level of SELinux`:    {Level: "s0\nc1"},
		`config.linux.security_context.selinux_options.level: "s0:c12345" is not a level of SELinux`: {Level: "s0:c12345"},
	} {
		if err := Validate(bad); err == nil || err.Error() != want {
			t.Errorf("%v:\n got %v\nwant %s", bad, err, want)
		}
	}
}
