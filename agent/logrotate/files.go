package logrotate

import (
	"slices"
	"strings"
	"time"
)

const (
	// stamp is when a log was renamed, in local time, and the kubelet's suffix.
	stamp      = "20060102-150405"
	archive    = ".gz"
	unfinished = ".tmp"
)

// file is what there is of one rotated log.
type file struct {
	stamp                       string
	plain, archived, unfinished bool
}

// files finds the rotated logs among the names in the directory of the log
// called base, oldest first. The kubelet takes whatever begins with the log's
// name for one; here other names are somebody else's.
func files(base string, names []string) []file {
	var list []file
	for _, name := range names {
		suffix, found := strings.CutPrefix(name, base+".")
		if !found || len(suffix) < len(stamp) {
			continue
		}
		at, kind := suffix[:len(stamp)], suffix[len(stamp):]
		if _, err := time.Parse(stamp, at); err != nil {
			continue
		}
		i := slices.IndexFunc(list, func(f file) bool { return f.stamp == at })
		f := file{stamp: at}
		if i >= 0 {
			f = list[i]
		}
		switch kind {
		case "":
			f.plain = true
		case archive:
			f.archived = true
		case unfinished:
			f.unfinished = true
		default:
			continue
		}
		if i >= 0 {
			list[i] = f
		} else {
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b file) int { return strings.Compare(a.stamp, b.stamp) })
	return list
}

// next is the stamp of a log that is rotated now: later than any other, also
// where the clock was set back, or an hour came twice. It must not be that of
// another, which would be lost, nor seem to be older than it is.
func next(list []file, now time.Time) string {
	at := now.Format(stamp)
	if len(list) == 0 || at > list[len(list)-1].stamp {
		return at
	}
	last, err := time.Parse(stamp, list[len(list)-1].stamp)
	if err != nil {
		return at // files has parsed it
	}
	return last.Add(time.Second).Format(stamp)
}

// tidy says which files go, and which are to be compressed, by their suffixes
// and oldest first, so that of maxFiles files one is left for the log itself.
// The newest is not compressed: the runtime may still write its last lines to
// it, and a shipper read them.
func tidy(list []file, maxFiles int) (remove, compress []string) {
	for _, f := range list {
		if f.unfinished {
			remove = append(remove, f.stamp+unfinished)
		}
	}
	logs := logs(list)
	for i, f := range logs {
		kept := i >= len(logs)-(maxFiles-1)
		if f.plain && (f.archived || !kept) {
			remove = append(remove, f.stamp)
		}
		if f.archived && !kept {
			remove = append(remove, f.stamp+archive)
		}
		if f.plain && !f.archived && kept && i < len(logs)-1 {
			compress = append(compress, f.stamp)
		}
	}
	return remove, compress
}

// logs leaves out those of which only an unfinished archive is there.
func logs(list []file) []file {
	return slices.DeleteFunc(slices.Clone(list), func(f file) bool { return !f.plain && !f.archived })
}

// interrupted is the stamp of the log that was renamed last, if it still is as
// it was.
func interrupted(list []file) (string, bool) {
	logs := logs(list)
	if len(logs) == 0 {
		return "", false
	}
	last := logs[len(logs)-1]
	return last.stamp, last.plain && !last.archived
}
