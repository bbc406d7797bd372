package qos

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func list(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func container(requests, limits v1.ResourceList) v1.Container {
	return v1.Container{Resources: v1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func sidecar(name string, requests, limits v1.ResourceList) v1.Container {
	c := container(requests, limits)
	always := v1.ContainerRestartPolicyAlways
	c.Name, c.RestartPolicy = name, &always
	return c
}

func podOf(containers ...v1.Container) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: v1.PodSpec{Containers: containers}}
}

func withInit(pod *v1.Pod, init ...v1.Container) *v1.Pod {
	pod.Spec.InitContainers = init
	return pod
}

func withPodLevel(pod *v1.Pod, requests, limits v1.ResourceList) *v1.Pod {
	pod.Spec.Resources = &v1.ResourceRequirements{Requests: requests, Limits: limits}
	return pod
}

func TestClass(t *testing.T) {
	whole := list("cpu", "1", "memory", "1Gi")
	for name, test := range map[string]struct {
		pod  *v1.Pod
		want v1.PodQOSClass
	}{
		"nothing asked for is best effort":              {podOf(container(nil, nil)), v1.PodQOSBestEffort},
		"zero asked for is best effort":                 {podOf(container(list("cpu", "0"), nil)), v1.PodQOSBestEffort},
		"only other resources is best effort":           {podOf(container(list("ephemeral-storage", "1Gi"), list("hugepages-2Mi", "2Mi"))), v1.PodQOSBestEffort},
		"requests equal to limits is guaranteed":        {podOf(container(whole, whole)), v1.PodQOSGuaranteed},
		"equal in another notation is guaranteed":       {podOf(container(list("cpu", "1000m", "memory", "1024Mi"), whole)), v1.PodQOSGuaranteed},
		"one container without limits is burstable":     {podOf(container(whole, whole), container(nil, nil)), v1.PodQOSBurstable},
		"an init container without limits is burstable": {withInit(podOf(container(whole, whole)), container(nil, nil)), v1.PodQOSBurstable},
		"an init container with limits is guaranteed":   {withInit(podOf(container(whole, whole)), container(whole, whole)), v1.PodQOSGuaranteed},
		"memory only is burstable":                      {podOf(container(list("memory", "1Gi"), list("memory", "1Gi"))), v1.PodQOSBurstable},
		"requests below limits is burstable":            {podOf(container(list("cpu", "1", "memory", "512Mi"), whole)), v1.PodQOSBurstable},
		"limits without requests is burstable":          {podOf(container(nil, whole)), v1.PodQOSBurstable},
		"pod level equal is guaranteed":                 {withPodLevel(podOf(container(nil, nil)), whole, whole), v1.PodQOSGuaranteed},
		"pod level requests only is burstable":          {withPodLevel(podOf(container(nil, nil)), whole, nil), v1.PodQOSBurstable},
		"pod level decides over containers":             {withPodLevel(podOf(container(whole, whole)), list("cpu", "1"), nil), v1.PodQOSBurstable},
		"a class in the status stands": {&v1.Pod{Status: v1.PodStatus{QOSClass: v1.PodQOSGuaranteed},
			Spec: v1.PodSpec{Containers: []v1.Container{container(nil, nil)}}}, v1.PodQOSGuaranteed},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Class(test.pod); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestOOMScoreAdj(t *testing.T) {
	const capacity = 4 << 30
	half := list("cpu", "1", "memory", "2Gi")
	priority := int32(2_000_001_000)
	critical := podOf(container(nil, nil))
	critical.Spec.PriorityClassName, critical.Spec.Priority = "system-node-critical", &priority
	static := podOf(container(nil, nil))
	static.Annotations, static.Spec.PriorityClassName = map[string]string{"kubernetes.io/config.source": "file"}, "system-node-critical"
	pretender := podOf(container(nil, nil))
	pretender.Spec.PriorityClassName = "system-node-critical"
	withSidecar := withInit(podOf(container(half, nil)), sidecar("s", list("memory", "64Mi"), nil))

	for name, test := range map[string]struct {
		pod       *v1.Pod
		container *v1.Container
		want      int64
	}{
		"best effort dies first":                              {podOf(container(nil, nil)), nil, 1000},
		"guaranteed dies last":                                {podOf(container(half, half)), nil, -997},
		"node critical dies last":                             {critical, nil, -997},
		"static node critical dies last":                      {static, nil, -997},
		"a class name without its priority is nothing":        {pretender, nil, 1000},
		"burstable with half of the memory":                   {podOf(container(half, nil)), nil, 500},
		"burstable without memory stays below best effort":    {podOf(container(list("cpu", "1"), nil)), nil, 999},
		"burstable with all memory stays above guaranteed":    {podOf(container(list("memory", "4Gi"), nil)), nil, 3},
		"a sidecar is kept as long as what it serves":         {withSidecar, &withSidecar.Spec.InitContainers[0], 500},
		"memory of the pod level is shared by its containers": {withPodLevel(podOf(container(list("memory", "1Gi"), nil), container(nil, nil)), list("memory", "3Gi"), nil), nil, 1000 - 500},
	} {
		t.Run(name, func(t *testing.T) {
			c := test.container
			if c == nil {
				c = &test.pod.Spec.Containers[0]
			}
			if got := OOMScoreAdj(test.pod, c, capacity); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}
