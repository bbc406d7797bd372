package server

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/image"
)

const defaultStopSignal = "SIGTERM"

// stopSignal: the request's wins over the image's.
func stopSignal(config *runtimeapi.ContainerConfig, img image.Image) string {
	if sig := config.GetStopSignal(); sig != runtimeapi.Signal_RUNTIME_DEFAULT {
		return criSignalName(sig)
	}
	if img.Config.StopSignal != "" {
		return img.Config.StopSignal
	}
	return defaultStopSignal
}

// criSignalName: SIGRTMINPLUS1 of the CRI is SIGRTMIN+1 for everybody else.
func criSignalName(sig runtimeapi.Signal) string {
	name := strings.Replace(sig.String(), "RTMINPLUS", "RTMIN+", 1)
	return strings.Replace(name, "RTMAXMINUS", "RTMAX-", 1)
}

// The real-time signals as the C library counts them: it keeps the first two.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// otherNames of signals, which the kernel's list has once.
var otherNames = map[string]string{"SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO", "SIGCLD": "SIGCHLD"}

// signalNumber reads SIGTERM, TERM, 15, SIGRTMIN+3 and the like.
func signalNumber(name string) (unix.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fmt.Errorf("%d is not a signal", n)
		}
		return unix.Signal(n), nil
	}
	upper := "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if same, ok := otherNames[upper]; ok {
		upper = same
	}
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	base, sign, rest := sigRTMin, 1, strings.TrimPrefix(upper, "SIGRTMIN")
	if after, ok := strings.CutPrefix(upper, "SIGRTMAX"); ok {
		base, sign, rest = sigRTMax, -1, after
	} else if rest == upper {
		return 0, fmt.Errorf("%q is not a signal", name)
	}
	offset := 0
	if rest != "" {
		n, err := strconv.Atoi(strings.TrimLeft(rest, "+-"))
		if err != nil || (rest[0] != '+') == (sign > 0) || n > sigRTMax-sigRTMin {
			return 0, fmt.Errorf("%q is not a signal", name)
		}
		offset = sign * n
	}
	return unix.Signal(base + offset), nil
}

// criSignal is the inverse of what stopSignal chose, for the status.
func criSignal(name string) runtimeapi.Signal {
	number, err := signalNumber(name)
	if err != nil {
		return runtimeapi.Signal_RUNTIME_DEFAULT
	}
	best := runtimeapi.Signal_RUNTIME_DEFAULT
	for value := range runtimeapi.Signal_name {
		sig := runtimeapi.Signal(value)
		if sig == runtimeapi.Signal_RUNTIME_DEFAULT {
			continue
		}
		if n, err := signalNumber(criSignalName(sig)); err == nil && n == number && (best == 0 || sig < best) {
			best = sig
		}
	}
	return best
}
