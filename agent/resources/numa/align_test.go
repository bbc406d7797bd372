package numa

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func aligner(t *testing.T, config Config, nodes int) *Aligner {
	t.Helper()
	var ids []int
	distances := map[int][]uint64{}
	for i := range nodes {
		ids = append(ids, i)
		for j := range nodes {
			// A ring: neighbours are near.
			hops := min((i-j+nodes)%nodes, (j-i+nodes)%nodes)
			distances[i] = append(distances[i], uint64(10+10*hops))
		}
	}
	a, err := NewAligner(config, ids, distances)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func hint(preferred bool, nodes ...int) Hint { return Hint{MaskOf(nodes...), preferred} }

func TestMerge(t *testing.T) {
	anywhere := []Hint{hint(true, 0), hint(true, 1), hint(false, 0, 1)}
	for name, test := range map[string]struct {
		policy    string
		providers []Hints
		want      Hint
		admit     bool
	}{
		"none has no opinion":                 {PolicyNone, []Hints{{"cpu": {}}}, Hint{}, true},
		"nobody has a preference":             {PolicyRestricted, []Hints{nil, {"gpu": nil}}, hint(true, 0, 1), true},
		"nobody has one, single node":         {PolicySingleNode, []Hints{nil, nil}, Hint{0, true}, true},
		"the lowest node of equals":           {PolicyRestricted, []Hints{{"cpu": anywhere}, nil}, hint(true, 0), true},
		"where both can":                      {PolicyRestricted, []Hints{{"cpu": anywhere}, {"gpu": {hint(true, 1), hint(false, 0, 1)}}}, hint(true, 1), true},
		"apart: best effort takes it":         {PolicyBestEffort, []Hints{{"cpu": {hint(true, 0), hint(false, 0, 1)}}, {"gpu": {hint(true, 1), hint(false, 0, 1)}}}, hint(false, 0), true},
		"apart: restricted does not":          {PolicyRestricted, []Hints{{"cpu": {hint(true, 0), hint(false, 0, 1)}}, {"gpu": {hint(true, 1), hint(false, 0, 1)}}}, hint(false, 0), false},
		"nowhere: restricted":                 {PolicyRestricted, []Hints{{"cpu": {}}}, hint(false, 0, 1), false},
		"nowhere: best effort":                {PolicyBestEffort, []Hints{{"cpu": {}}}, hint(false, 0, 1), true},
		"two nodes needed: restricted":        {PolicyRestricted, []Hints{{"cpu": {hint(true, 0, 1)}}}, hint(true, 0, 1), true},
		"two nodes needed: single node":       {PolicySingleNode, []Hints{{"cpu": {hint(true, 0, 1)}}}, Hint{0, false}, false},
		"one node will do: single node":       {PolicySingleNode, []Hints{{"cpu": anywhere}, {"memory": {hint(true, 1), hint(false, 0, 1)}}}, hint(true, 1), true},
		"as wide as the widest that is asked": {PolicyBestEffort, []Hints{{"cpu": {hint(false, 0, 1)}}, {"gpu": {hint(false, 0), hint(false, 0, 1)}}}, hint(false, 0, 1), true},
	} {
		t.Run(name, func(t *testing.T) {
			got, admit := aligner(t, Config{Policy: test.policy}, 2).Merge(test.providers)
			if got != test.want || admit != test.admit {
				t.Errorf("got %v %v, want %v %v", got, admit, test.want, test.admit)
			}
		})
	}
}

func TestTheClosestNodesArePreferredWhereAskedFor(t *testing.T) {
	hints := []Hints{{"cpu": {hint(true, 0, 2), hint(true, 2, 3)}}}
	if got, _ := aligner(t, Config{Policy: PolicyBestEffort}, 4).Merge(hints); got != hint(true, 0, 2) {
		t.Errorf("by number: got %v", got)
	}
	near := Config{Policy: PolicyBestEffort, Options: map[string]string{"prefer-closest-numa-nodes": "true"}}
	if got, _ := aligner(t, near, 4).Merge(hints); got != hint(true, 2, 3) {
		t.Errorf("by distance: got %v", got)
	}
}

func TestBadConfigurationsAreNamed(t *testing.T) {
	nine := []int{0, 1, 2, 3, 4, 5, 6, 7, 8}
	for want, config := range map[string]Config{
		"unknown policy":     {Policy: "strict"},
		"unknown scope":      {Scope: "node"},
		"unknown Topology":   {Policy: PolicyRestricted, Options: map[string]string{"x": "true"}},
		"bad value":          {Policy: PolicyRestricted, Options: map[string]string{"prefer-closest-numa-nodes": "yes!"}},
		"should not be less": {Policy: PolicyRestricted, Options: map[string]string{"max-allowable-numa-nodes": "4"}},
		"more than 8":        {Policy: PolicyRestricted},
		"distances of NUMA":  {Policy: PolicyRestricted, Options: map[string]string{"max-allowable-numa-nodes": "9", "prefer-closest-numa-nodes": "true"}},
	} {
		if _, err := NewAligner(config, nine, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", config, err, want)
		}
	}
	if _, err := NewAligner(Config{Policy: PolicyRestricted, Options: map[string]string{"max-allowable-numa-nodes": "9"}}, nine, nil); err != nil {
		t.Error(err)
	}
}

func TestEachSubsetVisitsAllSmallOnesFirst(t *testing.T) {
	var got []Mask
	EachSubset([]int{3, 0, 1}, func(m Mask) { got = append(got, m) })
	want := []Mask{MaskOf(0), MaskOf(1), MaskOf(3), MaskOf(0, 1), MaskOf(0, 3), MaskOf(1, 3), MaskOf(0, 1, 3)}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// The order in which resources and their hints are looked at is that of a map,
// and must not matter.
func TestTheOrderOfHintsDoesNotMatter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	a := aligner(t, Config{Policy: PolicyBestEffort}, 4)
	for range 200 {
		var lists [][]Hint
		for range 1 + random.IntN(3) {
			var list []Hint
			for range 1 + random.IntN(5) {
				list = append(list, Hint{Mask(1 + random.IntN(15)), random.IntN(2) == 0})
			}
			lists = append(lists, list)
		}
		want := a.best(lists)
		for range 5 {
			random.Shuffle(len(lists), func(i, j int) { lists[i], lists[j] = lists[j], lists[i] })
			for _, list := range lists {
				random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			}
			if got := a.best(lists); got != want {
				t.Fatalf("%v: got %v, before %v", lists, got, want)
			}
		}
	}
}
