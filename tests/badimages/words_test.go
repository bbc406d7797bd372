package badimages

// want is what berth prints for each of registry.BadImages.
var want = map[string]string{
	"config-missing":      `error: pull registry.test/bad/config-missing:1: config DIGEST: not found at 127.0.0.1:5000: not found`,
	"config-wrong-digest": `error: pull registry.test/bad/config-wrong-digest:1: config DIGEST: content has digest DIGEST`,
	"diff-id-mismatch":    `error: pull registry.test/bad/diff-id-mismatch:1: unpack layer 1/1 DIGEST: unpacks to DIGEST, the configuration says DIGEST`,
	"hardlink-escape":     `error: pull registry.test/bad/hardlink-escape:1: unpack layer 1/1 DIGEST: hard link "shadow" to "../../../../../../../../etc/passwd" leaves the image root`,
	"layer-missing":       `error: pull registry.test/bad/layer-missing:1: layer 1/1 DIGEST: not found at 127.0.0.1:5000: not found`,
	"layer-stalls":        `error: pull registry.test/bad/layer-stalls:1: layer 1/1 DIGEST: 127.0.0.1:5000 sent nothing for 6s, giving up: unavailable`,
	"layer-truncated":     `error: pull registry.test/bad/layer-truncated:1: layer 1/1 DIGEST: 127.0.0.1:5000 has N of its N bytes`,
	"layer-wrong-digest":  `error: pull registry.test/bad/layer-wrong-digest:1: layer 1/1 DIGEST: content has digest DIGEST`,
	"manifest-not-json":   `error: pull registry.test/bad/manifest-not-json:1: manifest DIGEST: not a manifest: invalid character '<' looking for beginning of value`,
	"manifest-too-large":  `error: pull registry.test/bad/manifest-too-large:1: not found at 127.0.0.1:5000: not found`,
	"not-a-tar":           `error: pull registry.test/bad/not-a-tar:1: unpack layer 1/1 DIGEST: archive/tar: invalid tar header`,
	"not-compressed":      `error: pull registry.test/bad/not-compressed:1: unpack layer 1/1 DIGEST: layer ends in the middle: unexpected EOF`,
	"path-traversal":      `error: pull registry.test/bad/path-traversal:1: unpack layer 1/1 DIGEST: entry "../../../../../../tmp/berth-escaped" leaves the image root`,
	"symlink-escape":      `error: pull registry.test/bad/symlink-escape:1: unpack layer 1/1 DIGEST: entry "out/berth-escaped" goes through symlink "out" to "../../../../../../../../../../tmp", which leaves the image root`,
	"too-many-layers":     `error: pull registry.test/bad/too-many-layers:1: config DIGEST: configuration lists 1 layers, the manifest 2`,
	"unknown-layer":       `error: pull registry.test/bad/unknown-layer:1: manifest DIGEST: layer 1/1 DIGEST: media type "application/vnd.example.layer" is not supported`,
	"unknown-manifest":    `error: pull registry.test/bad/unknown-manifest:1: manifest DIGEST: media type "application/vnd.example.manifest" is not supported`,
	"wrong-config-arch":   `error: pull registry.test/bad/wrong-config-arch:1: config DIGEST: image is for linux/s390x, this node runs linux/amd64`,
	"wrong-platform":      `error: pull registry.test/bad/wrong-platform:1: no manifest for linux/amd64, the image has linux/s390x: not found`,
	"zip-bomb":            `error: pull registry.test/bad/zip-bomb:1: unpack layer 1/1 DIGEST: layer unpacks to more than the 68719476736 bytes one layer may have`,
}
