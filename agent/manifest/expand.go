package manifest

import (
	"fmt"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Workloads become pods of one node when the file is read; no controller runs.
//
//   - Deployment, ReplicaSet: spec.replicas pods (default 1), NAME-0, NAME-1
//     and so on. A changed template replaces every pod at once: strategy,
//     minReadySeconds, progressDeadlineSeconds, revisionHistoryLimit and
//     paused are accepted and have no effect. A changed number of replicas
//     leaves the other pods alone.
//   - DaemonSet: one pod, NAME. updateStrategy has no effect, as above.
//   - Job: one pod per completion, NAME-0, NAME-1 and so on, all started at
//     once. completions without an equal or larger parallelism asks for turns,
//     which needs a controller, and is rejected. parallelism alone means so
//     many pods. Indexed Jobs get the index as in Kubernetes: annotation,
//     label, JOB_COMPLETION_INDEX and host name. restartPolicy OnFailure
//     restarts a failed container in its pod; with Never a failed pod stays
//     failed, none takes its place. backoffLimit is handed on as annotation
//     berth.io/backoff-limit and bounds the restarts in each pod (agent/plan);
//     here nothing counts. activeDeadlineSeconds is
//     each pod's. A suspended Job has no pods. ttlSecondsAfterFinished and
//     podReplacementPolicy have no effect.
//
// A pod's annotation berth.io/owner says what it came from.
type workload struct {
	kind     string
	meta     metav1.ObjectMeta
	selector *metav1.LabelSelector // nil: not checked
	template v1.PodTemplateSpec
	count    int32
	single   bool // one pod that bears the workload's own name
	indexed  bool
	job      bool
	// policies are the restart policies the kind allows.
	policies []v1.RestartPolicy
	// annotations go on every pod, beside the template's.
	annotations map[string]string
}

var alwaysOnly = []v1.RestartPolicy{v1.RestartPolicyAlways}

func fromDeployment(d *appsv1.Deployment) workload {
	return workload{kind: "Deployment", meta: d.ObjectMeta, selector: orEmpty(d.Spec.Selector), template: d.Spec.Template,
		count: countOr(d.Spec.Replicas, 1), policies: alwaysOnly}
}

func fromReplicaSet(r *appsv1.ReplicaSet) workload {
	return workload{kind: "ReplicaSet", meta: r.ObjectMeta, selector: orEmpty(r.Spec.Selector), template: r.Spec.Template,
		count: countOr(r.Spec.Replicas, 1), policies: alwaysOnly}
}

func fromDaemonSet(d *appsv1.DaemonSet) workload {
	return workload{kind: "DaemonSet", meta: d.ObjectMeta, selector: orEmpty(d.Spec.Selector), template: d.Spec.Template,
		count: 1, single: true, policies: alwaysOnly}
}

func fromJob(j *batchv1.Job) (workload, field.ErrorList) {
	spec := field.NewPath("spec")
	w := workload{kind: "Job", meta: j.ObjectMeta, template: j.Spec.Template, job: true,
		policies: []v1.RestartPolicy{v1.RestartPolicyOnFailure, v1.RestartPolicyNever}}
	parallelism := countOr(j.Spec.Parallelism, 1)
	w.count = countOr(j.Spec.Completions, parallelism)
	errs := unsupportedJobFields(&j.Spec, spec)
	if w.count > parallelism {
		errs = append(errs, field.Forbidden(spec.Child("completions"), fmt.Sprintf(
			"pods of a Job taking turns (%d at a time) are not supported by this version: all completions start at once, set parallelism to %d", parallelism, w.count)))
	}
	if mode := j.Spec.CompletionMode; mode != nil {
		switch *mode {
		case batchv1.IndexedCompletion:
			w.indexed = true
			if j.Spec.Completions == nil {
				errs = append(errs, field.Required(spec.Child("completions"), "when completionMode is Indexed"))
			}
		case batchv1.NonIndexedCompletion:
		default:
			errs = append(errs, field.NotSupported(spec.Child("completionMode"), *mode, []batchv1.CompletionMode{batchv1.IndexedCompletion, batchv1.NonIndexedCompletion}))
		}
	}
	if j.Spec.Suspend != nil && *j.Spec.Suspend {
		w.count = 0
	}
	if s := j.Spec.ActiveDeadlineSeconds; s != nil {
		if own := w.template.Spec.ActiveDeadlineSeconds; own == nil || *s < *own {
			w.template.Spec.ActiveDeadlineSeconds = s
		}
	}
	limit := countOr(j.Spec.BackoffLimit, 6)
	if limit < 0 {
		errs = append(errs, field.Invalid(spec.Child("backoffLimit"), limit, "must be greater than or equal to 0"))
	}
	w.annotations = map[string]string{AnnotationBackoffLimit: strconv.Itoa(int(limit))}
	return w, errs
}

func unsupportedJobFields(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	refuse := func(set bool, name string) {
		if set {
			errs = append(errs, field.Forbidden(path.Child(name), "not supported by this version"))
		}
	}
	refuse(s.PodFailurePolicy != nil, "podFailurePolicy")
	refuse(s.SuccessPolicy != nil, "successPolicy")
	refuse(s.BackoffLimitPerIndex != nil, "backoffLimitPerIndex")
	refuse(s.MaxFailedIndexes != nil, "maxFailedIndexes")
	refuse(s.ManagedBy != nil, "managedBy")
	return errs
}

func countOr(n *int32, fallback int32) int32 {
	if n == nil {
		return fallback
	}
	return *n
}

func orEmpty(s *metav1.LabelSelector) *metav1.LabelSelector {
	if s == nil {
		return &metav1.LabelSelector{}
	}
	return s
}

// expand adds the pods of a workload. The template is defaulted and validated
// once even when no pod is asked for.
func (p *parser) expand(doc document, w workload) {
	if w.meta.Namespace == "" {
		w.meta.Namespace = metav1.NamespaceDefault
	}
	if !p.claimName(doc, w.kind, Key{w.meta.Namespace, w.meta.Name}) {
		return
	}
	before := len(p.rejections)
	p.rejectAll(doc, w.validate())
	if p.pods+int(max(w.count, 0)) > maxPods {
		p.rejectAt(doc.node.Line, doc.base.Child("spec"), "asks for %d pods: a file may ask for at most %d", p.pods+int(w.count), maxPods)
	}
	template := field.NewPath("spec", "template")
	paths := podPaths{meta: template.Child("metadata"), spec: template.Child("spec"), generated: true}
	if w.count <= 0 {
		p.checkPod(doc, w.pod(0), paths)
	}
	for i := range w.count {
		if len(p.rejections) > before { // every pod has the same faults
			return
		}
		p.addPod(doc, w.pod(int(i)), paths)
	}
}

func (w *workload) validate() field.ErrorList {
	meta, spec := field.NewPath("metadata"), field.NewPath("spec")
	errs := validateMeta(&w.meta, meta)
	if w.count < 0 {
		name := "replicas"
		if w.job {
			name = "completions"
		}
		errs = append(errs, field.Invalid(spec.Child(name), w.count, "must be greater than or equal to 0"))
	}
	errs = append(errs, w.validatePolicy(spec.Child("template", "spec", "restartPolicy"))...)
	if s := w.selector; s != nil {
		errs = append(errs, validateSelector(s, w.template.Labels, spec)...)
	}
	if w.count > 1 && usesHostPorts(&w.template.Spec) {
		errs = append(errs, field.Invalid(spec.Child("replicas"), w.count, "its containers use host ports, which only one pod of a node can have"))
	}
	return errs
}

func (w *workload) validatePolicy(path *field.Path) field.ErrorList {
	policy := w.template.Spec.RestartPolicy
	if policy == "" {
		if slices.Contains(w.policies, v1.RestartPolicyAlways) { // the default
			return nil
		}
		return field.ErrorList{field.Required(path, fmt.Sprintf("one of %q", w.policies))}
	}
	return oneOf(policy, path, w.policies...)
}

func validateSelector(s *metav1.LabelSelector, templateLabels map[string]string, spec *field.Path) field.ErrorList {
	path := spec.Child("selector")
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return field.ErrorList{field.Required(path, "must select the labels of the template")}
	}
	errs := metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, path)
	if len(errs) > 0 {
		return errs
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return field.ErrorList{field.Invalid(path, "", err.Error())}
	}
	if !selector.Matches(labels.Set(templateLabels)) {
		return field.ErrorList{field.Invalid(spec.Child("template", "metadata", "labels"), templateLabels, "`selector` does not match template `labels`")}
	}
	return nil
}

func usesHostPorts(spec *v1.PodSpec) bool {
	for _, c := range spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort != 0 || spec.HostNetwork {
				return true
			}
		}
	}
	return false
}

// pod makes the pod with the given index from the template.
func (w *workload) pod(index int) *v1.Pod {
	t := w.template.DeepCopy()
	pod := &v1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	pod.Namespace = w.meta.Namespace
	pod.Name = w.meta.Name
	if !w.single {
		pod.Name += "-" + strconv.Itoa(index)
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[AnnotationOwner] = w.kind + "/" + w.meta.Name
	for k, v := range w.annotations {
		pod.Annotations[k] = v
	}
	if w.job {
		w.asJobPod(pod, index)
	}
	return pod
}

// asJobPod adds what the Job controller adds to its pods.
func (w *workload) asJobPod(pod *v1.Pod, index int) {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	if len(w.meta.Name) <= 63 { // a longer one is no label value
		pod.Labels[batchv1.JobNameLabel] = w.meta.Name
		pod.Labels["job-name"] = w.meta.Name
	}
	if !w.indexed {
		return
	}
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = strconv.Itoa(index)
	pod.Annotations[batchv1.JobCompletionIndexAnnotation] = strconv.Itoa(index)
	if pod.Spec.Hostname == "" && len(pod.Name) <= 63 {
		pod.Spec.Hostname = pod.Name
	}
	env := v1.EnvVar{Name: "JOB_COMPLETION_INDEX", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{
		APIVersion: "v1", FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"}}}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if !slices.ContainsFunc(list[i].Env, func(e v1.EnvVar) bool { return e.Name == env.Name }) {
				list[i].Env = append(list[i].Env, env)
			}
		}
	}
}
