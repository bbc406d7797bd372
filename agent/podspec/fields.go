package podspec

import (
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/csi/downward"
)

// downwardValue resolves a fieldRef or resourceFieldRef of an environment
// variable.
func downwardValue(from *v1.EnvVarSource, c Container, node Node) (string, error) {
	pod := downward.Pod{
		Pod: c.Pod, NodeName: node.Name, HostIPs: node.HostIPs, PodIPs: c.PodIPs, Allocatable: node.Allocatable,
	}
	var value string
	var err error
	if from.FieldRef != nil {
		value, err = pod.Field(from.FieldRef)
	} else {
		value, err = pod.Resource(from.ResourceFieldRef, c.Container)
	}
	if err != nil {
		return "", &ConfigError{Message: err.Error()}
	}
	return value, nil
}
