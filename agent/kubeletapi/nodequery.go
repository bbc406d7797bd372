package kubeletapi

import (
	"fmt"
	"net/url"
	"os"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of a node log query (pkg/kubelet/kubelet_server_journal.go).
const (
	maxNodeTail      = 100_000
	maxServiceLength = 256
	maxServices      = 4
	// journalTime names its zone: journalctl reads a time without one as local.
	journalTime = "2006-01-02 15:04:05 UTC"
)

// nodeQuery is what of the host's logs is wanted.
type nodeQuery struct {
	services, files []string
	since, until    *time.Time
	tail, boot      *int
	pattern         string
}

// restricted tells whether a part of a log is wanted, which only the journal has.
func (q *nodeQuery) restricted() bool {
	return q.since != nil || q.until != nil || q.tail != nil || q.boot != nil || q.pattern != ""
}

// readNodeQuery is nil for a request that queries nothing.
func readNodeQuery(v url.Values) (*nodeQuery, field.ErrorList) {
	var errs field.ErrorList
	q := &nodeQuery{pattern: v.Get("pattern")}
	queries, asked := v["query"]
	for _, one := range queries {
		switch {
		case strings.ContainsAny(one, `/\`):
			q.files = append(q.files, one)
		case strings.TrimSpace(one) != "":
			q.services = append(q.services, one)
		}
	}
	if asked && len(q.files) == 0 && len(q.services) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("query"), queries, "may not be empty"))
	}
	for name, to := range map[string]**time.Time{"sinceTime": &q.since, "untilTime": &q.until} {
		if text := v.Get(name); text != "" {
			t, err := time.Parse(time.RFC3339, text)
			if err != nil {
				errs = append(errs, field.Invalid(field.NewPath(name), text, "invalid time format"))
				continue
			}
			*to = &t
		}
	}
	for name, to := range map[string]**int{"boot": &q.boot, "tailLines": &q.tail} {
		if text := v.Get(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				errs = append(errs, field.Invalid(field.NewPath(name), text, err.Error()))
				continue
			}
			*to = &n
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	if !q.restricted() && !asked {
		return nil, nil
	}
	return q, nil
}

// validate says what cannot be asked, as the kubelet does.
func (q *nodeQuery) validate(dir string) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("query")
	for _, s := range q.services {
		if err := safeService(s); err != nil {
			errs = append(errs, field.Invalid(path, s, err.Error()))
		}
	}
	if len(q.services) > maxServices {
		errs = append(errs, field.TooMany(path, len(q.services), maxServices))
	}
	switch {
	case len(q.files) == 0 && len(q.services) == 0:
		errs = append(errs, field.Required(path, "cannot be empty with options"))
	case len(q.files) > 0 && len(q.services) > 0:
		errs = append(errs, field.Invalid(path, fmt.Sprintf("%v, %v", q.files, q.services), "cannot specify a file and service"))
	case len(q.files) > 1:
		errs = append(errs, field.Invalid(path, q.files, "cannot specify more than one file"))
	case len(q.files) == 1 && q.restricted():
		errs = append(errs, field.Invalid(path, q.files, "cannot specify file with options"))
	case len(q.files) == 1:
		f, err := os.OpenInRoot(dir, strings.TrimPrefix(q.files[0], "/"))
		if err != nil {
			errs = append(errs, field.Invalid(path, q.files, err.Error()))
		} else {
			f.Close()
		}
	}
	if q.since != nil && q.until != nil && q.since.After(*q.until) {
		errs = append(errs, field.Invalid(field.NewPath("untilTime"), q.until, "must be after `sinceTime`"))
	}
	if q.boot != nil && *q.boot > 0 {
		errs = append(errs, field.Invalid(field.NewPath("boot"), *q.boot, "must be less than 1"))
	}
	if q.tail != nil {
		if wrong := validation.IsInRange(*q.tail, 0, maxNodeTail); wrong != nil {
			errs = append(errs, field.Invalid(field.NewPath("tailLines"), *q.tail, wrong[0]))
		}
	}
	if _, err := syntax.Parse(q.pattern, syntax.Perl); err != nil {
		errs = append(errs, field.Invalid(field.NewPath("pattern"), q.pattern, err.Error()))
	}
	return errs
}

// safeService lets through what cannot be anything but a unit's name.
func safeService(name string) error {
	if len(name) > maxServiceLength {
		return fmt.Errorf("length must be less than %d", maxServiceLength)
	}
	for _, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.:@", c)) {
			return fmt.Errorf("input contains unsupported characters")
		}
	}
	return nil
}

// arguments are journalctl's.
func (q *nodeQuery) arguments(units []string) []string {
	args := []string{"--utc", "--no-pager", "--output=short-precise"}
	if q.since != nil {
		args = append(args, "--since="+q.since.UTC().Format(journalTime))
	}
	if q.until != nil {
		args = append(args, "--until="+q.until.UTC().Format(journalTime))
	}
	if q.tail != nil {
		args = append(args, "--pager-end", fmt.Sprintf("--lines=%d", *q.tail))
	}
	for _, u := range units {
		args = append(args, "--unit="+u)
	}
	if q.pattern != "" {
		args = append(args, "--grep="+q.pattern)
	}
	if q.boot != nil {
		args = append(args, "--boot", strconv.Itoa(*q.boot))
	}
	return args
}
