package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// BenchmarkPull is a pull and unpack of 512 MiB in eight layers over loopback,
// in unpacked bytes a second.
func BenchmarkPull(b *testing.B) {
	reg := newTestRegistry(b)
	const layers, size = 8, 64 << 20
	var parts []v1.Layer
	for i := range layers {
		parts = append(parts, rawLayer(b, bulk(b, uint64(i), size), tarball.WithCompressionLevel(6)))
	}
	ref := reg.push(b, "bulk:1", build(b, parts...))
	config := testConfig(b)
	s := open(b, config)
	b.SetBytes(layers * size)
	for b.Loop() {
		img := mustPull(b, s, ref)
		b.StopTimer()
		if err := s.Remove(context.Background(), img.ID); err != nil {
			b.Fatal(err)
		}
		if err := s.garbageCollect(s.context(context.Background())); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// bulk is a layer of about size bytes that packs as programs do, about 2.5:1,
// in files of 1 KiB to 4 MiB.
func bulk(t testing.TB, seed uint64, size int) []byte {
	t.Helper()
	random := rand.NewChaCha8([32]byte{byte(seed), 1})
	number := rand.New(random)
	words := make([]byte, 64<<10)
	_, _ = random.Read(words) // never fails
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for n := 0; out.Len() < size; n++ {
		if n%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("l%d/d%d/", seed, n/100), Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1, 0)}); err != nil {
				t.Fatal(err)
			}
		}
		length := 1 << (10 + number.IntN(9))
		if n%50 == 49 {
			length = 4 << 20
		}
		body := make([]byte, 0, length+64)
		for len(body) < length {
			at := number.IntN(len(words) - 64)
			body = append(body, words[at:at+8+number.IntN(12)]...)
		}
		h := &tar.Header{Name: fmt.Sprintf("l%d/d%d/f%d", seed, n/100, n), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(length), ModTime: time.Unix(1, 0)}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, bytes.NewReader(body[:length])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
