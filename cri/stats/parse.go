package stats

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Unlimited is a limit that is not there.
const Unlimited = math.MaxUint64

// number reads a file with one number. "max" is Unlimited.
func number(data []byte) (uint64, error) {
	text := bytes.TrimSpace(data)
	if string(text) == "max" {
		return Unlimited, nil
	}
	return strconv.ParseUint(string(text), 10, 64)
}

// flatKeyed reads lines of a key and a number, as memory.stat has them. A
// number that does not fit, such as a negative one, makes its line unknown, as
// a later kernel's format would. take must not keep the key.
func flatKeyed(data []byte, take func(key []byte, value uint64)) {
	for line := range bytes.Lines(data) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(string(value), 10, 64); err == nil {
			take(key, n)
		}
	}
}

// Pressure is how long tasks waited for a resource (PSI).
type Pressure struct {
	Some, Full Stall
}

// Stall is one line of a pressure file: of some tasks, or of all at once.
type Stall struct {
	Avg10, Avg60, Avg300 float64 // percent of the last 10, 60 and 300 seconds
	Total                time.Duration
}

// pressure reads a PSI file. Kernels before 5.13 have no line "full" for CPU.
func pressure(data []byte) (Pressure, error) {
	var p Pressure
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		var s *Stall
		switch string(fields[0]) {
		case "some":
			s = &p.Some
		case "full":
			s = &p.Full
		default:
			continue
		}
		if err := stall(s, fields[1:]); err != nil {
			return Pressure{}, err
		}
	}
	return p, nil
}

func stall(s *Stall, fields [][]byte) error {
	for _, f := range fields {
		key, text, _ := bytes.Cut(f, []byte("="))
		var err error
		switch string(key) {
		case "avg10":
			s.Avg10, err = strconv.ParseFloat(string(text), 64)
		case "avg60":
			s.Avg60, err = strconv.ParseFloat(string(text), 64)
		case "avg300":
			s.Avg300, err = strconv.ParseFloat(string(text), 64)
		case "total":
			var µs int64
			µs, err = strconv.ParseInt(string(text), 10, 64)
			s.Total = time.Duration(µs) * time.Microsecond
		}
		if err != nil {
			return fmt.Errorf("pressure %q: %w", f, err)
		}
	}
	return nil
}

// DeviceIO is what went to and from one block device.
type DeviceIO struct {
	Major, Minor            uint32
	ReadBytes, WrittenBytes uint64
	Reads, Writes           uint64 // operations
}

// ioStat reads version 2's io.stat: MAJ:MIN rbytes=1 wbytes=2 rios=3 wios=4 ...
func ioStat(data []byte) []DeviceIO {
	var list []DeviceIO
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue // a device that was never used has no numbers
		}
		var d DeviceIO
		var ok bool
		if d.Major, d.Minor, ok = device(fields[0]); !ok {
			continue
		}
		for _, f := range fields[1:] {
			key, text, _ := bytes.Cut(f, []byte("="))
			n, err := strconv.ParseUint(string(text), 10, 64)
			if err != nil {
				continue
			}
			switch string(key) {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WrittenBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
		list = append(list, d)
	}
	return list
}

// blkio reads version 1's blkio.throttle.io_service_bytes_recursive and
// io_serviced_recursive: lines MAJ:MIN OPERATION NUMBER. The order is that of
// the first file.
func blkio(serviceBytes, serviced []byte) []DeviceIO {
	var list []DeviceIO
	at := map[[2]uint32]int{}
	for i, data := range [][]byte{serviceBytes, serviced} {
		for line := range bytes.Lines(data) {
			fields := bytes.Fields(line)
			if len(fields) != 3 {
				continue // the line "Total"
			}
			major, minor, ok := device(fields[0])
			n, err := strconv.ParseUint(string(fields[2]), 10, 64)
			if !ok || err != nil {
				continue
			}
			key := [2]uint32{major, minor}
			if _, known := at[key]; !known {
				at[key] = len(list)
				list = append(list, DeviceIO{Major: major, Minor: minor})
			}
			d := &list[at[key]]
			switch operation := string(fields[1]); {
			case operation == "Read" && i == 0:
				d.ReadBytes = n
			case operation == "Write" && i == 0:
				d.WrittenBytes = n
			case operation == "Read":
				d.Reads = n
			case operation == "Write":
				d.Writes = n
			}
		}
	}
	return list
}

func device(text []byte) (major, minor uint32, ok bool) {
	a, b, found := bytes.Cut(text, []byte(":"))
	x, errX := strconv.ParseUint(string(a), 10, 32)
	y, errY := strconv.ParseUint(string(b), 10, 32)
	return uint32(x), uint32(y), found && errX == nil && errY == nil
}

// Interface is one network interface, from the point of view of its pod.
type Interface struct {
	Name                 string
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
	RxErrors, TxErrors   uint64
	RxDropped, TxDropped uint64
}

// netDev reads /proc/net/dev: two lines of headings, then NAME: and 16 numbers.
// The loopback interface is left out.
func netDev(data []byte) ([]Interface, error) {
	var list []Interface
	for line := range bytes.Lines(data) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue // a heading
		}
		fields := bytes.Fields(rest)
		if len(fields) < 16 {
			return nil, fmt.Errorf("network interface line %q: %d numbers instead of 16", line, len(fields))
		}
		i := Interface{Name: string(bytes.TrimSpace(name))}
		if i.Name == "lo" {
			continue
		}
		for _, f := range []struct {
			at   int
			into *uint64
		}{
			{0, &i.RxBytes}, {1, &i.RxPackets}, {2, &i.RxErrors}, {3, &i.RxDropped},
			{8, &i.TxBytes}, {9, &i.TxPackets}, {10, &i.TxErrors}, {11, &i.TxDropped},
		} {
			var err error
			if *f.into, err = strconv.ParseUint(string(fields[f.at]), 10, 64); err != nil {
				return nil, fmt.Errorf("network interface line %q: %w", line, err)
			}
		}
		list = append(list, i)
	}
	return list, nil
}
