package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func stubborn([]string) error {
	ch := signals(syscall.SIGTERM)
	fmt.Println("ready")
	for sig := range ch {
		fmt.Println("ignored:", sig)
	}
	return nil
}

func term(args []string) error {
	fs := flag.NewFlagSet("term", flag.ExitOnError)
	code := fs.Int("code", 0, "exit code")
	text := fs.String("print", "terminated", "line to print")
	delay := fs.Duration("delay", 0, "time between the signal and the exit")
	fs.Parse(args)
	ch := signals(syscall.SIGTERM)
	fmt.Println("ready")
	<-ch
	fmt.Println(*text)
	time.Sleep(*delay)
	os.Exit(*code)
	return nil
}

func exit(args []string) error {
	fs := flag.NewFlagSet("exit", flag.ExitOnError)
	code := fs.Int("code", 0, "exit code")
	after := fs.Duration("after", 0, "time before the exit")
	text := fs.String("print", "", "line to print")
	message := fs.String("message", "", "termination message")
	path := fs.String("path", "/dev/termination-log", "file of the termination message")
	fs.Parse(args)
	stop := signals(syscall.SIGTERM) // before anyone is told that it is there
	if *text != "" {
		fmt.Println(*text)
	}
	if *message != "" {
		if err := os.WriteFile(*path, []byte(*message), 0o644); err != nil {
			return err
		}
	}
	select {
	case <-time.After(*after):
	case <-stop:
	}
	os.Exit(*code)
	return nil
}

// lines writes each line in one system call, so that a reader who finds half a
// line found a fault of the log writer. A line counts as written once the
// write returned, and the last number is printed at SIGTERM.
func lines(args []string) error {
	fs := flag.NewFlagSet("lines", flag.ExitOnError)
	count := fs.Int("n", 0, "number of lines; 0 means until SIGTERM")
	interval := fs.Duration("interval", time.Millisecond, "time between lines")
	width := fs.Int("width", 0, "pad lines to this many bytes")
	both := fs.Bool("both", false, "write every other line to stderr")
	fs.Parse(args)
	stop := signals(syscall.SIGTERM)
	pad := strings.Repeat(".", *width)
	n := 0
	for *count == 0 || n < *count {
		select {
		case <-stop:
			fmt.Printf("end %d\n", n)
			return nil
		case <-time.After(*interval):
		}
		out := os.Stdout
		if *both && n%2 == 1 {
			out = os.Stderr
		}
		line := fmt.Sprintf("line %d", n+1)
		if len(line) < len(pad) {
			line += pad[len(line):]
		}
		if _, err := out.WriteString(line + "\n"); err != nil {
			return err
		}
		n++
	}
	fmt.Printf("end %d\n", n)
	return nil
}

// euid prints what the image of the same purpose in Kubernetes' tests prints.
func euid([]string) error {
	fmt.Println("Effective uid:", os.Geteuid())
	return nil
}

func alloc(args []string) error {
	fs := flag.NewFlagSet("alloc", flag.ExitOnError)
	mib := fs.Int("mib", 1, "memory to touch, MiB")
	fs.Parse(args)
	mem, err := unix.Mmap(-1, 0, *mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map %d MiB: %w", *mib, err)
	}
	for i := 0; i < len(mem); i += os.Getpagesize() {
		mem[i] = 1
	}
	fmt.Println("holding", *mib, "MiB")
	return pause(nil)
}

// zombies starts children whose own children outlive them for a moment. Those
// are re-parented to PID 1 of the namespace, which should reap them.
func zombies(args []string) error {
	fs := flag.NewFlagSet("zombies", flag.ExitOnError)
	n := fs.Int("n", 5, "orphans to make")
	fs.Parse(args)
	for range *n {
		if err := exec.Command("/bin/sh", "-c", "sleep 0.2 & exit 0").Run(); err != nil {
			return err
		}
	}
	time.Sleep(time.Second)
	left, err := countZombies()
	// What reaps them may be late, but not for ever.
	for deadline := time.Now().Add(time.Minute); err == nil && left > 0 && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
		left, err = countZombies()
	}
	if err != nil {
		return err
	}
	fmt.Println("zombies", left)
	return pause(nil)
}

func countZombies() (left int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		if _, state, ok := strings.Cut(string(stat), ") "); ok && strings.HasPrefix(state, "Z") {
			left++
		}
	}
	return left, nil
}

// syscallCmd tries calls that a seccomp profile or a missing capability should
// refuse, with arguments that harm nothing when it does not.
func syscallCmd(args []string) error {
	calls := map[string]func() error{
		"unshare-user": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"keyctl":       func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); return err },
		"mount":        func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") },
		"chroot":       func() error { return unix.Chroot("/") },
		"sethostname":  func() error { return unix.Sethostname([]byte("changed")) },
		"mknod":        func() error { return unix.Mknod("/tmp/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		"chown":        func() error { return os.Chown("/tmp", 1, 1) },
		"mkdir":        func() error { return unix.Mkdir("/tmp/made", 0o700) },
		"raw-socket":   func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP); return err },
		"settime": func() error {
			var ts unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err != nil {
				return err
			}
			return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
		},
	}
	for _, name := range args {
		call, ok := calls[name]
		if !ok {
			return fmt.Errorf("no such call %q", name)
		}
		err := call()
		if err == nil {
			fmt.Println(name, "ok")
			continue
		}
		var errno unix.Errno
		if !errors.As(err, &errno) {
			return err
		}
		fmt.Println(name, unix.ErrnoName(errno))
	}
	return nil
}
