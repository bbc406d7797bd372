package source

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/manifest"
)

// file is what is known of one manifest file.
type file struct {
	print      fingerprint
	sum        [sha256.Size]byte // of what was last read
	good       *manifest.Set     // in force; nil when no version was ever good
	waiting    *candidate        // a good version that defines another file's objects
	problems   []manifest.Rejection
	unreadable bool // problems are of reading, not of content
}

// candidate is a valid version of a file that is not in force yet.
type candidate struct {
	set  manifest.Set
	data []byte
	at   time.Time
}

// fingerprint changes whenever a file's content may have.
type fingerprint struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// refresh looks at one file and reads it when it differs from what is known.
// True means that there is news.
func (d *Dir) refresh(name string) bool {
	f := d.files[name]
	print, err := d.fingerprint(name)
	if err == nil && f != nil && print == f.print && !f.unreadable {
		return false
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(d.path(name)); err != nil {
			return false // gone again: its own event or the next rescan says so
		} // else a symbolic link to nowhere
	}
	if f == nil {
		f = &file{}
		d.files[name] = f
	}
	var data []byte
	if err == nil {
		data, print, err = d.read(name)
	}
	if errors.Is(err, errBusy) && d.tryAgain(name) {
		return d.postpone(name, f)
	}
	if err != nil {
		f.print = print
		return d.reject(name, f, err)
	}
	return d.accept(name, f, data, print)
}

func (d *Dir) forget(name string) bool {
	f, known := d.files[name]
	if !known {
		return false
	}
	d.putInForce(name, f, nil)
	delete(d.files, name)
	d.cache.remove(name)
	d.cfg.Logger.Info("manifest removed", "file", name)
	return true
}

// postpone leaves things as they are until a file's writer is done.
func (d *Dir) postpone(name string, f *file) bool {
	if f.good != nil || f.problems != nil || f.unreadable {
		return false
	}
	d.restore(name, f)
	f.unreadable = true
	return f.good != nil
}

// reject notes that a file cannot be read.
func (d *Dir) reject(name string, f *file, err error) bool {
	if f.good == nil && f.problems == nil {
		d.restore(name, f)
	}
	r := manifest.Rejection{File: name, Reason: fmt.Sprintf("cannot be read%s: %v", keeping(f), reason(err))}
	known := len(f.problems) == 1 && f.problems[0] == r
	f.unreadable, f.problems = !errors.Is(err, errNotRegular), []manifest.Rejection{r}
	if !known {
		d.cfg.Logger.Warn("manifest cannot be read", "file", name, "error", err, "keepsLastGood", f.good != nil)
	}
	return !known
}

func keeping(f *file) string {
	if f.good != nil {
		return ", its last good version stays in force"
	}
	return ""
}

// accept parses what a file says now. An invalid file leaves its last good
// version in force.
func (d *Dir) accept(name string, f *file, data []byte, print fingerprint) bool {
	sum := sha256.Sum256(data)
	f.print = print
	if sum == f.sum && !f.unreadable { // only touched
		return false
	}
	f.sum, f.unreadable, f.waiting = sum, false, nil
	at := time.Unix(print.mtime.Unix())
	set, rejections := d.parse(name, data, at)
	if len(rejections) > 0 {
		if f.good == nil {
			d.restore(name, f)
		}
		f.problems = rejections
		d.cfg.Logger.Warn("manifest rejected", "file", name, "error", rejections[0].Error(), "problems", len(rejections), "keepsLastGood", f.good != nil)
		return true
	}
	d.admit(name, f, &candidate{set, data, at})
	return true
}

// admit puts a valid version in force unless it defines objects of another file.
func (d *Dir) admit(name string, f *file, c *candidate) {
	f.problems = d.conflicts(name, &c.set)
	if len(f.problems) > 0 {
		if f.good == nil && f.waiting == nil {
			d.restore(name, f)
		}
		if f.waiting == nil {
			d.cfg.Logger.Info("manifest waits for objects of another file", "file", name, "error", f.problems[0].Error())
		}
		f.waiting = c
		return
	}
	f.waiting = nil
	keepUnchanged(&c.set, f.good)
	d.putInForce(name, f, &c.set)
	d.cache.put(name, c.data, c.at)
	d.cfg.Logger.Info("manifest accepted", "file", name, "pods", len(c.set.Pods))
}

// admitWaiting tries again those that waited. One may set another's objects
// free, so it goes on while that helps.
func (d *Dir) admitWaiting() {
	for again := true; again; {
		again = false
		for _, name := range sortedNames(d.files) {
			if f := d.files[name]; f.waiting != nil {
				d.admit(name, f, f.waiting)
				again = again || f.waiting == nil
			}
		}
	}
}

func (d *Dir) conflicts(name string, set *manifest.Set) []manifest.Rejection {
	var out []manifest.Rejection
	for _, object := range set.Objects() {
		if owner, ok := d.owner[object]; ok && owner != name {
			out = append(out, manifest.Rejection{File: name, Field: "metadata.name",
				Reason: fmt.Sprintf("%s is already defined in %s", object, owner)})
		}
	}
	return out
}

// putInForce replaces a file's version in force; nil for none.
func (d *Dir) putInForce(name string, f *file, set *manifest.Set) {
	if f.good != nil {
		for _, object := range f.good.Objects() {
			delete(d.owner, object)
		}
	}
	f.good = set
	if set != nil {
		for _, object := range set.Objects() {
			d.owner[object] = name
		}
	}
}

func (d *Dir) parse(name string, data []byte, now time.Time) (manifest.Set, []manifest.Rejection) {
	opts := d.cfg.Options
	opts.Now = now
	return manifest.Parse(name, data, opts)
}

// restore puts the last good version from before a restart in force.
func (d *Dir) restore(name string, f *file) {
	data, at, err := d.cache.get(name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		d.cfg.Logger.Warn("last good version of a manifest cannot be read", "file", name, "error", err)
		return
	}
	set, rejections := d.parse(name, data, at)
	if len(rejections) > 0 { // this version of Berth is stricter than the one that kept it
		d.cfg.Logger.Warn("last good version of a manifest is not valid any more", "file", name, "error", rejections[0].Error())
		return
	}
	if conflicts := d.conflicts(name, &set); len(conflicts) > 0 {
		d.cfg.Logger.Warn("last good version of a manifest defines objects of another file", "file", name, "error", conflicts[0].Error())
		return
	}
	d.putInForce(name, f, &set)
}

// keepUnchanged takes over the pods that a new version of a file left alone,
// with the creation time they had.
func keepUnchanged(set, old *manifest.Set) {
	if old == nil {
		return
	}
	byUID := make(map[string]*v1.Pod, len(old.Pods))
	for _, pod := range old.Pods {
		byUID[string(pod.UID)] = pod
	}
	for i, pod := range set.Pods {
		if same := byUID[string(pod.UID)]; same != nil {
			set.Pods[i] = same
		}
	}
}

func (d *Dir) fingerprint(name string) (fingerprint, error) {
	var st unix.Stat_t
	if err := unix.Stat(d.path(name), &st); err != nil {
		return fingerprint{}, &fs.PathError{Op: "stat", Path: d.path(name), Err: err}
	}
	return printOf(&st), nil
}

func printOf(st *unix.Stat_t) fingerprint {
	return fingerprint{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

var (
	// errBusy: the next close of the file brings an event.
	errBusy       = errors.New("open for writing; it is read once it is closed")
	errNotRegular = errors.New("not a regular file")
)

// read returns a file's content and the fingerprint that goes with it. A file
// that someone is writing is not read: half of it may well be valid.
func (d *Dir) read(name string) ([]byte, fingerprint, error) {
	fail := func(op string, err error) ([]byte, fingerprint, error) {
		return nil, fingerprint{}, &fs.PathError{Op: op, Path: d.path(name), Err: err}
	}
	// O_NONBLOCK: opening a FIFO must not wait for its writer.
	fd, err := unix.Open(d.path(name), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fail("open", err)
	}
	f := os.NewFile(uintptr(fd), d.path(name))
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail("stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fail("read", errNotRegular)
	}
	if beingWritten(fd) {
		return fail("read", errBusy)
	}
	data, err := io.ReadAll(io.LimitReader(f, manifest.MaxFileSize+1))
	if err != nil {
		return fail("read", reason(err))
	}
	return data, printOf(&st), nil
}

// beingWritten says whether any process has the file open for writing: the
// kernel grants a read lease (fcntl(2), F_SETLEASE) only when none has. Where
// a file system knows no leases the answer is no.
func beingWritten(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	if err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK) // closing the file would do it too
	return false
}
