package image

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// parseReference completes what a user wrote to the full name that the
// registry and the records know: docker.io and library/ are filled in, a name
// without tag and digest means :latest, and of name:tag@digest the digest
// counts and the tag is dropped, as containerd's CRI does.
func parseReference(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", ref, err)
	}
	return named, nil
}

// withDigest is the name@digest under which the image stays known when its
// tag moves on.
func withDigest(named reference.Named, dgst digest.Digest) (string, error) {
	canonical, err := reference.WithDigest(reference.TrimNamed(named), dgst)
	if err != nil {
		return "", fmt.Errorf("image reference %s@%s: %w", named.Name(), dgst, err)
	}
	return canonical.String(), nil
}

// recordKind tells what a record's name is: a tag, a digest, or, for an
// imported image without a name, the image's ID.
type recordKind int

const (
	recordID recordKind = iota
	recordTag
	recordDigest
)

func kindOf(name string) recordKind {
	switch {
	case strings.Contains(name, "@"):
		return recordDigest
	case isID(name):
		return recordID
	}
	return recordTag
}

// isID reports whether s is a whole image ID, sha256: and 64 hex digits.
func isID(s string) bool {
	dgst, err := digest.Parse(s)
	return err == nil && dgst.Algorithm() == digest.SHA256
}
