package userns

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// kubelet is the user whose subordinate IDs are the pods'.
const kubelet = "kubelet"

// HostRange is what the host has configured, by the kubelet's rule: if there is
// a user kubelet and the program getsubids, the one range that it prints for
// users and groups alike; else Default.
func HostRange(ctx context.Context) (Range, error) {
	var unknown user.UnknownUserError
	if _, err := user.Lookup(kubelet); errors.As(err, &unknown) {
		return Default, nil
	} else if err != nil {
		return Range{}, fmt.Errorf("look up user %s: %w", kubelet, err)
	}
	getsubids, err := exec.LookPath("getsubids")
	if errors.Is(err, exec.ErrNotFound) {
		return Default, nil
	}
	if err != nil {
		return Range{}, fmt.Errorf("find getsubids: %w", err)
	}
	uids, err := exec.CommandContext(ctx, getsubids, kubelet).Output()
	if err != nil {
		return Range{}, fmt.Errorf("getsubids %s: %w", kubelet, err)
	}
	gids, err := exec.CommandContext(ctx, getsubids, "-g", kubelet).Output()
	if err != nil {
		return Range{}, fmt.Errorf("getsubids -g %s: %w", kubelet, err)
	}
	if string(uids) != string(gids) {
		return Range{}, fmt.Errorf("the subordinate user and group IDs of %s differ: %q and %q (/etc/subuid, /etc/subgid)", kubelet, uids, gids)
	}
	return parseRange(string(uids))
}

// parseRange reads "0: kubelet 65536 7208960".
func parseRange(output string) (Range, error) {
	lines := strings.Split(strings.Trim(output, "\n"), "\n")
	fields := strings.Fields(lines[0])
	if len(lines) != 1 || len(fields) != 4 {
		return Range{}, fmt.Errorf("getsubids printed %q: it must be one range", output)
	}
	first, firstErr := strconv.ParseUint(fields[2], 10, 32)
	length, lengthErr := strconv.ParseUint(fields[3], 10, 32)
	if err := errors.Join(firstErr, lengthErr); err != nil {
		return Range{}, fmt.Errorf("getsubids printed %q: %w", output, err)
	}
	if first < Block || first%Block != 0 || length < Block || length%Block != 0 {
		return Range{}, fmt.Errorf("the subordinate IDs of %s are %d from %d: both must be multiples of %d, and not 0 (/etc/subuid, /etc/subgid)", kubelet, length, first, Block)
	}
	return Range{First: uint32(first), Last: uint32(min(first+length-1, uint64(Default.Last)))}, nil
}
