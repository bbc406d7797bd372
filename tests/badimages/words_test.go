package badimages

// want is what berth prints for each of registry.BadImages.
var want = map[string]string{
	"path-traversal": "",
}
