package host

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// AppArmorProfile is the name of the default AppArmor profile.
const AppArmorProfile = "berth-default"

// loadedProfiles lists the kernel's profiles, one a line: NAME (MODE).
const loadedProfiles = "/sys/kernel/security/apparmor/profiles"

// LoadAppArmor loads the default profile into the kernel, with
// apparmor_parser, unless it is there.
func LoadAppArmor() error {
	loaded, err := isLoaded(loadedProfiles, AppArmorProfile)
	if err != nil {
		return fmt.Errorf("load the default AppArmor profile: %w", err)
	}
	if loaded {
		return nil
	}
	profile := appArmorProfile(AppArmorProfile, func(name string) bool { return exists(filepath.Join("/etc/apparmor.d", name)) }, daemonProfile())
	cmd := exec.Command("apparmor_parser", "--skip-cache", "--replace")
	cmd.Stdin = strings.NewReader(profile)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("load the default AppArmor profile: %w (install the package apparmor)", err)
	} else if err != nil {
		return fmt.Errorf("load the default AppArmor profile: apparmor_parser: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func isLoaded(list, name string) (bool, error) {
	f, err := os.Open(list)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), name+" ") {
			return true, nil
		}
	}
	return false, lines.Err()
}

// daemonProfile is what confines this process.
func daemonProfile() string {
	current, err := os.ReadFile("/proc/self/attr/current")
	if err != nil {
		return "unconfined" // as a process is where nothing says otherwise
	}
	name, _, _ := strings.Cut(strings.TrimSpace(string(current)), " ")
	if name == "" {
		return "unconfined"
	}
	return name
}

// appArmorProfile is the default profile of containers, rule by rule that of
// containerd, which is Docker's: pods move between runtimes. It is written here
// since containerd's package renders it with text/template, which looks up
// methods by name: a binary that does keeps every exported method of every type
// it knows, which were 20 MB of this one.
//
// Has tells whether the host has a file of AppArmor's policy; daemon is the
// profile of those who may signal containers.
func appArmorProfile(name string, has func(string) bool, daemon string) string {
	var b strings.Builder
	if has("abi/3.0") {
		b.WriteString("abi <abi/3.0>,\n")
	}
	if has("tunables/global") {
		b.WriteString("#include <tunables/global>\n")
	} else {
		b.WriteString("@{PROC}=/proc/\n")
	}
	fmt.Fprintf(&b, "profile %s flags=(attach_disconnected,mediate_deleted) {\n", name)
	if has("abstractions/base") {
		b.WriteString("#include <abstractions/base>\n")
	}
	b.WriteString("network,\ncapability,\nfile,\numount,\n")
	for _, peer := range []string{"unconfined", "runc", "crun", daemon} {
		fmt.Fprintf(&b, "signal (receive) peer=%s,\n", peer)
	}
	fmt.Fprintf(&b, "signal (send,receive) peer=%s,\n", name)
	b.WriteString(deniedFiles)
	fmt.Fprintf(&b, "ptrace (trace,tracedby,read,readby) peer=%s,\n}\n", name)
	return b.String()
}

// deniedFiles are what a container may not write: of /proc all but its own
// processes and /proc/sys/kernel/shm*, and of /sys all but cgroups.
const deniedFiles = `deny @{PROC}/* w,
deny @{PROC}/{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}/** w,
deny @{PROC}/sys/[^k]** w,
deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
deny @{PROC}/sysrq-trigger rwklx,
deny @{PROC}/kcore rwklx,
deny mount,
deny /sys/[^f]*/** wklx,
deny /sys/f[^s]*/** wklx,
deny /sys/fs/[^c]*/** wklx,
deny /sys/fs/c[^g]*/** wklx,
deny /sys/fs/cg[^r]*/** wklx,
deny /sys/firmware/** rwklx,
deny /sys/devices/virtual/powercap/** rwklx,
deny /sys/kernel/security/** rwklx,
`
