package kubeletapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/podspec"
)

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, podList(s.parts.Pods.Pods()))
}

func podList(pods []*v1.Pod) v1.PodList {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: make([]v1.Pod, 0, len(pods))}
	for _, p := range pods {
		list.Items = append(list.Items, *p)
	}
	return list
}

// runningPods are what the runtime runs, whoever wants it: names, no more.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	sandboxes, err := s.parts.Runtime.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: ready}})
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	containers, err := s.running(r.Context(), nil)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	pods := map[string]*v1.Pod{}
	for _, sb := range sandboxes.GetItems() {
		m := sb.GetMetadata()
		pods[m.GetUid()] = &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(m.GetUid()), Name: m.GetName(), Namespace: m.GetNamespace()}}
	}
	for _, c := range containers {
		if pod := pods[c.GetLabels()[podspec.LabelPodUID]]; pod != nil {
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: c.GetMetadata().GetName(), Image: c.GetImage().GetImage()})
		}
	}
	var list []*v1.Pod
	for _, p := range pods {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *v1.Pod) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	s.answer(w, podList(list))
}

// running lists the containers that run, newest first.
func (s *Server) running(ctx context.Context, labels map[string]string) ([]*runtimeapi.Container, error) {
	state := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	list, err := s.parts.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: state, LabelSelector: labels},
	})
	if err != nil {
		return nil, err
	}
	// A runtime is free to filter less than it is asked.
	containers := slices.DeleteFunc(list.GetContainers(), func(c *runtimeapi.Container) bool {
		return c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING
	})
	slices.SortStableFunc(containers, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()) })
	return containers, nil
}

// find finds the pod that a request names, or nil. Of two with one name (a pod
// made anew while the old one ends) it is the one that stays.
func (s *Server) find(r *http.Request) *v1.Pod {
	var found *v1.Pod
	for _, p := range s.parts.Pods.Pods() {
		if p.Namespace == r.PathValue("namespace") && p.Name == r.PathValue("pod") && (found == nil || found.DeletionTimestamp != nil) {
			found = p
		}
	}
	return found
}

// pod is find, answering where there is none.
func (s *Server) pod(w http.ResponseWriter, r *http.Request) *v1.Pod {
	found := s.find(r)
	if found == nil {
		fail(w, http.StatusNotFound, "pod does not exist")
		return nil
	}
	if uid := r.PathValue("uid"); uid != "" && types.UID(uid) != found.UID {
		fail(w, http.StatusNotFound, "pod not found")
		return nil
	}
	return found
}

// containerOf finds the running container of a pod by name; nil if none runs.
func (s *Server) containerOf(ctx context.Context, pod *v1.Pod, name string) (*runtimeapi.Container, error) {
	containers, err := s.running(ctx, map[string]string{podspec.LabelPodUID: string(pod.UID)})
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		if c.GetMetadata().GetName() == name {
			return c, nil
		}
	}
	return nil, nil
}

// specOf finds a container in a pod's specification.
func specOf(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if c := &pod.Spec.EphemeralContainers[i]; c.Name == name {
			return (*v1.Container)(&c.EphemeralContainerCommon)
		}
	}
	return nil
}

func (s *Server) configz(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, map[string]any{"kubeletconfig": s.config.KubeletConfig})
}

// summary is /stats/summary.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	measure := s.parts.Stats.Summary
	if only := r.FormValue("only_cpu_and_memory"); only == "true" {
		measure = s.parts.Stats.CPUAndMemory
	}
	summary, err := measure(r.Context())
	if err != nil {
		s.config.Log.Warn("the node cannot be measured", "err", err)
		fail(w, http.StatusInternalServerError, fmt.Sprintf("Internal Error: %v", err))
		return
	}
	s.answer(w, summary)
}
