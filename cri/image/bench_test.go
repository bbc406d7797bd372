package image

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkOpen is what a restart of the daemon waits for.
func BenchmarkOpen(b *testing.B) {
	config := testConfig(b)
	s := open(b, config)
	for i := range 50 {
		img := small(b, fmt.Sprint(i))
		if _, err := s.Import(context.Background(), archiveOf(b, fmt.Sprintf("example.com/app:%d", i), img)); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s := open(b, config)
		if len(s.List()) != 50 {
			b.Fatal("images are missing")
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGet is what each start of a pod does.
func BenchmarkGet(b *testing.B) {
	s := open(b, testConfig(b))
	list, err := s.Import(context.Background(), archiveOf(b, "example.com/app:1", small(b, "x")))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if img, ok := s.Get("example.com/app:1"); !ok || img.ID != list[0].ID {
			b.Fatal("not found")
		}
	}
}
