package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAListIsSentInMessagesOfABoundedSizeEachItemOnce(t *testing.T) {
	for _, c := range []struct {
		name     string
		count    int
		bytes    int // of one item, about
		messages int
	}{
		{"nothing", 0, 0, 0},
		{"one", 1, 100, 1},
		{"as many as fit", 10, 1000, 1},
		{"more than fit", 10, chunkBytes/4 - 100, 3},
		{"items that are larger than a message", 3, 2 * chunkBytes, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			var list []*runtimeapi.Container
			for i := range c.count {
				list = append(list, &runtimeapi.Container{Id: fmt.Sprint(i), ImageRef: strings.Repeat("x", c.bytes)})
			}
			var got []*runtimeapi.Container
			messages := 0
			err := sendChunks(slices.Values(list), func(chunk []*runtimeapi.Container) error {
				if len(chunk) == 0 {
					t.Error("an empty message")
				}
				got = append(got, chunk...)
				messages++
				return nil
			})
			if err != nil || !slices.Equal(got, list) || messages != c.messages {
				t.Errorf("%d items in %d messages, %v; want %d in %d", len(got), messages, err, len(list), c.messages)
			}
		})
	}
}

func TestAStreamThatBreaksEndsTheList(t *testing.T) {
	broken := errors.New("broken")
	sent := 0
	list := slices.Repeat([]*runtimeapi.Container{{ImageRef: strings.Repeat("x", chunkBytes)}}, 5)
	err := sendChunks(slices.Values(list), func([]*runtimeapi.Container) error {
		if sent++; sent == 2 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || sent != 2 {
		t.Errorf("%v after %d messages", err, sent)
	}
}
