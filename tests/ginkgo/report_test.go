package ginkgo

import (
	"strings"
	"testing"
	"time"
)

const sampleReport = `[{"SpecReports": [
 {"LeafNodeType": "BeforeSuite", "State": "passed"},
 {"ContainerHierarchyTexts": ["[k8s.io] Streaming", "exec"], "LeafNodeType": "It", "LeafNodeText": "works", "State": "passed"},
 {"ContainerHierarchyTexts": ["[k8s.io] Streaming"], "LeafNodeType": "It", "LeafNodeText": "breaks", "State": "failed",
  "Failure": {"Message": "Unexpected error:\n    <*Error | 0x1>: \n    no\n    {\n        s: {\n        },\n    }\noccurred"}},
 {"ContainerHierarchyTexts": ["Image"], "LeafNodeType": "It", "LeafNodeText": "by digest", "State": "timedout", "Failure": {"Message": "late"}},
 {"ContainerHierarchyTexts": ["NRI"], "LeafNodeType": "It", "LeafNodeText": "a", "State": "skipped", "Failure": {"Message": "no socket"}},
 {"ContainerHierarchyTexts": ["NRI"], "LeafNodeType": "It", "LeafNodeText": "b", "State": "skipped", "Failure": {"Message": "no socket"}},
 {"ContainerHierarchyTexts": ["benchmark"], "LeafNodeType": "It", "LeafNodeText": "x", "State": "skipped"}
]}]`

func TestAReportIsSummarizedWithEveryFailureByName(t *testing.T) {
	specs, err := Parse([]byte(sampleReport))
	if err != nil {
		t.Fatal(err)
	}
	r := Summarize(specs, []Exception{{Spec: "Image by digest", Reason: "offline"}, {Spec: "Streaming exec works", Reason: "old"}})
	var out strings.Builder
	r.Print(&out, "critest on berth", 62*time.Second)
	want := `critest on berth: 1 of 3 passed, 2 failed (1 of them known), 2 skipped, 1 not selected, in 1m2s
skipped   2: no socket
known: Image by digest
    offline
failed: Streaming breaks
    Unexpected error:
        <*Error | 0x1>: 
        no
    occurred
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
	if got, want := r.Unexpected(true), "1 specs failed that exceptions.yaml does not list\n"+
		"exceptions.yaml lists \"Streaming exec works\", which did not fail: remove it\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := r.Unexpected(false); strings.Contains(got, "remove it") {
		t.Errorf("a part of the suite says of an exception: %s", got)
	}
}

func TestASuiteThatCannotStartIsAFailure(t *testing.T) {
	specs, err := Parse([]byte(`[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "panicked", "Failure": {"Message": "no"}}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	if r := Summarize(specs, nil); len(r.Failed) != 1 || r.Failed[0].Name != "BeforeSuite" || r.Unexpected(true) == "" {
		t.Errorf("got %+v", r)
	}
	if _, err := Parse([]byte(`[]`)); err == nil {
		t.Error("an empty report is taken for a run")
	}
}

func TestAnExceptionWithoutAReasonIsRefused(t *testing.T) {
	if _, err := LoadExceptions([]byte("- {spec: Image by digest, reason: offline}\n- {spec: Streaming}\n")); err == nil ||
		err.Error() != "exceptions.yaml: entry 2 needs a spec and a reason" {
		t.Errorf("got %v", err)
	}
}
