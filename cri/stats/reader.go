package stats

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone means that a cgroup, a namespace or a layer is not there, or no
// longer: what it belonged to has ended.
var ErrGone = errors.New("it is gone")

// Hierarchies say where the host's cgroups are.
type Hierarchies struct {
	// Unified is a host with version 2 alone.
	Unified bool
	// Mount returns the mount point of a version 1 controller, and that of
	// version 2 for ""; empty where there is none.
	Mount func(controller string) string
	// HugePageSizes are those of the kernel, as its files name them: 2MB, 1GB.
	HugePageSizes []string
}

// Reader reads cgroups. It is safe for concurrent use.
type Reader struct {
	host    Hierarchies
	buffers sync.Pool // of *[]byte: readings come in hundreds at once
}

// NewReader returns a reader of the host's cgroups.
func NewReader(h Hierarchies) *Reader {
	r := &Reader{host: h}
	r.buffers.New = func() any {
		b := make([]byte, bufferSize)
		return &b
	}
	return r
}

// files takes a buffer for a reading; done gives it back.
func (r *Reader) files() (f *files, done func()) {
	buf := r.buffers.Get().(*[]byte)
	f = &files{buf: *buf}
	return f, func() {
		*buf = f.buf // it may have grown
		r.buffers.Put(buf)
	}
}

// Usage is what one cgroup, and those below it, use.
type Usage struct {
	At     time.Time
	CPU    *CPU    // nil without the controller, as all that is a pointer
	Memory *Memory // see CPU
	Swap   *Swap   // nil where the kernel does not account swap
	// Pressure is nil where the kernel does not measure it for this cgroup.
	CPUPressure, MemoryPressure, IOPressure *Pressure
}

// CPU time on all processors since the cgroup was made.
type CPU struct {
	Total time.Duration
	CPUDetail
}

// CPUDetail is the part of CPU that only Detail reads.
type CPUDetail struct {
	User, System time.Duration
	// Periods of the quota, those in which it was used up, and for how long.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
	// BurstPeriods are those that used more than the quota, and how much more.
	BurstPeriods uint64
	Burst        time.Duration
}

// Memory in bytes.
type Memory struct {
	Usage      uint64
	Limit      uint64 // Unlimited without
	WorkingSet uint64 // usage without file pages that can be dropped at once
	RSS        uint64 // anonymous memory, huge pages included
	// Page faults since the cgroup was made, and those that had to read.
	PageFaults, MajorPageFaults uint64
	MemoryDetail
}

// MemoryDetail is the part of Memory that only Detail reads.
type MemoryDetail struct {
	Cache, MappedFile, Kernel uint64
	ActiveFile, InactiveFile  uint64
	Peak                      uint64
	LimitHits, OOMKills       uint64
}

// Swap in bytes.
type Swap struct {
	Usage uint64
	Limit uint64 // Unlimited without
}

// Detail is Usage with what only metrics show.
type Detail struct {
	Usage
	IO        []DeviceIO
	HugePages []HugePages
	// Tasks are threads. MaxTasks may be Unlimited.
	Tasks, MaxTasks *uint64
}

// HugePages of one size, in bytes.
type HugePages struct {
	Size  string // 2MB
	Usage uint64
	Peak  *uint64 // version 2 does not keep it
}

// Usage reads a cgroup by its path below the mount points.
func (r *Reader) Usage(path string) (Usage, error) {
	d, err := r.read(path, false)
	return d.Usage, err
}

// Detail reads more files than Usage.
func (r *Reader) Detail(path string) (Detail, error) { return r.read(path, true) }

func (r *Reader) read(path string, all bool) (Detail, error) {
	d := Detail{Usage: Usage{At: time.Now()}}
	f, done := r.files()
	defer done()
	if r.host.Unified {
		r.readV2(f, filepath.Join(r.host.Mount(""), path), &d, all)
	} else {
		r.readV1(f, path, &d, all)
	}
	switch {
	case f.err != nil:
		return Detail{}, f.err
	case d.CPU == nil && d.Memory == nil:
		return Detail{}, fmt.Errorf("cgroup %s: %w", path, ErrGone)
	}
	return d, nil
}

// bufferSize takes a whole memory.stat: these files are made anew for every
// read call.
const bufferSize = 8 << 10

// files reads small files into one buffer. The first error is kept, and ends
// all reading.
type files struct {
	buf []byte
	err error
}

// read returns a file's content, valid until the next call. It is not ok when
// there is no such file or the kernel has its feature switched off.
func (f *files) read(dir, name string) (data []byte, ok bool) {
	if f.err != nil || dir == "" {
		return nil, false
	}
	data, err := f.slurp(dir + "/" + name)
	switch {
	case err == nil:
		return data, true
	// A cgroup that goes away gives ENODEV, PSI that is disabled EOPNOTSUPP.
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP):
		return nil, false
	}
	f.err = fmt.Errorf("read %s/%s: %w", dir, name, err)
	return nil, false
}

func (f *files) slurp(path string) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n := 0
	for {
		if n == len(f.buf) {
			f.buf = append(f.buf, make([]byte, len(f.buf))...)
		}
		m, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, f.buf[n:]) })
		if err != nil {
			return nil, err
		}
		if m == 0 {
			return f.buf[:n], nil
		}
		n += m
	}
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// number reads a file with one number.
func (f *files) number(dir, name string) (n uint64, ok bool) {
	data, ok := f.read(dir, name)
	if !ok {
		return 0, false
	}
	n, err := number(data)
	if err != nil {
		f.err = fmt.Errorf("read %s/%s: %w", dir, name, err)
		return 0, false
	}
	return n, true
}

// optional is number for those that are shown only where they are.
func (f *files) optional(dir, name string) *uint64 {
	if n, ok := f.number(dir, name); ok {
		return &n
	}
	return nil
}

func (f *files) keyed(dir, name string, take func(key []byte, value uint64)) bool {
	data, ok := f.read(dir, name)
	if ok {
		flatKeyed(data, take)
	}
	return ok
}

func (f *files) pressure(dir, name string) *Pressure {
	data, ok := f.read(dir, name)
	if !ok {
		return nil
	}
	p, err := pressure(data)
	if err != nil {
		f.err = fmt.Errorf("read %s/%s: %w", dir, name, err)
		return nil
	}
	return &p
}

func (f *files) pressures(dir string, u *Usage) {
	u.CPUPressure = f.pressure(dir, "cpu.pressure")
	u.MemoryPressure = f.pressure(dir, "memory.pressure")
	u.IOPressure = f.pressure(dir, "io.pressure")
}
