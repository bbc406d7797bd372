package kubeletapi

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/podlog"
)

func TestLogOptionsAreReadAsTheKubeletDoes(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	s := func(text string) *string { return &text }
	all := s(v1.LogStreamAll)
	for query, want := range map[string]*v1.PodLogOptions{
		"":                               {Stream: all},
		"follow=true&timestamps=1":       {Stream: all, Follow: true, Timestamps: true},
		"follow&previous=":               {Stream: all, Follow: true, Previous: true},
		"follow=false&previous=0":        {Stream: all},
		"follow=False&timestamps=no":     {Stream: all, Timestamps: true},
		"tailLines=0":                    {Stream: all, TailLines: n(0)},
		"tail=7":                         {Stream: all, TailLines: n(7)},
		"tail=all&tailLines=3":           {Stream: all},
		"limitBytes=1&sinceSeconds=1":    {Stream: all, LimitBytes: n(1), SinceSeconds: n(1)},
		"sinceTime=2026-01-02T03:04:05Z": {Stream: all, SinceTime: &metav1.Time{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}},
		"sinceTime=":                     {Stream: all},
		"stream=Stdout&limitBytes=9":     {Stream: s("Stdout"), LimitBytes: n(9)},
		"insecureSkipTLSVerifyBackend=true&container=c&unknown=x": {Stream: all, InsecureSkipTLSVerifyBackend: true, Container: "c"},
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := logOptions(q)
		if err != nil {
			t.Errorf("%q: %v", query, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", query, diff)
		}
	}
}

func TestWrongLogOptionsAreRefusedWithTheKubeletsCode(t *testing.T) {
	for query, want := range map[string]error{
		"tailLines=x": errDecode, "limitBytes=1e3": errDecode, "sinceSeconds=": errDecode, "sinceTime=yesterday": errDecode, "tail=x": errDecode,
		"tailLines=99999999999999999999": errDecode,
		"tailLines=-1":                   errInvalid, "limitBytes=0": errInvalid, "sinceSeconds=0": errInvalid,
		"sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z": errInvalid,
		"stream=stdout": errInvalid, "stream=": errInvalid, "stream=Stderr&tailLines=1": errInvalid,
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := logOptions(q); !errors.Is(err, want) {
			t.Errorf("%q: %+v, %v; want %v", query, o, err, want)
		}
	}
}

func FuzzLogOptions(f *testing.F) {
	for _, q := range []string{"", "follow=1&tailLines=3", "sinceSeconds=9223372036854775807", "tail=all", "stream=Stderr", "sinceTime=2026-01-02T03:04:05Z", "limitBytes=-1"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Skip()
		}
		o, err := logOptions(q)
		if err != nil {
			if !errors.Is(err, errDecode) && !errors.Is(err, errInvalid) {
				t.Fatalf("an error that is not answered: %v", err)
			}
			return
		}
		now := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
		r := readOptions(o, now)
		if r.LimitBytes < 0 || r.TailLines < -1 || o.SinceSeconds != nil && r.Since.After(now) {
			t.Errorf("%q becomes %+v", query, r)
		}
		if r.Stream != "" && r.Stream != podlog.Stdout && r.Stream != podlog.Stderr {
			t.Errorf("%q asks for stream %q", query, r.Stream)
		}
	})
}
